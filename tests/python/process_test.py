# SPDX-License-Identifier: MIT
"""What needs a process of its own: what an import brings in, shutdown, fork, interpreters, the tool."""
from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import msa

SITE = str(pathlib.Path(msa.__file__).parents[1])


def python(code, *options, environment=()):
    env = {**os.environ, "PYTHONPATH": SITE, **dict(environment)}
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, env=env, timeout=120)


def runs(code, *options, environment=()):
    done = python(code, *options, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize("library", ["numpy", "torch", "ml_dtypes", "transformers", "jax", "cupy"])
def test_import_brings_in_nothing(library):
    """Not at import, and not where a foreign object is refused."""
    code = f"""
import sys, msa
assert {library!r} not in sys.modules
try:
    msa.dense_attention(1, 2, 3)
except TypeError:
    pass
assert {library!r} not in sys.modules, "imported by a refused call"
"""
    runs(code, "-W", "error")


def test_import_changes_nothing():
    code = """
import logging, os, warnings
before = dict(os.environ), list(warnings.filters), list(logging.root.handlers)
import msa
assert before == (dict(os.environ), list(warnings.filters), list(logging.root.handlers))
"""
    runs(code)


def test_shutdown_with_live_objects():
    """Plans, arrays and errors that outlive the module's own end."""
    code = """
import sys, numpy as np, msa
q = np.ones((1, 1, 16), np.float32)
plan = msa.make_plan("dense_attention", q=q, k=q, v=q)
kept = [plan.run, msa._core.dense_attention, msa.Error("x")]
class Late:
    def __del__(self):
        try:
            kept[0](q, q, q)
        except BaseException:
            pass
sys.modules["late"] = Late()
plan.late = None if hasattr(plan, "late") else None
""".replace("plan.late = None if hasattr(plan, \"late\") else None\n", "")
    runs(code)


def test_plans_may_be_attacked_from_their_own_exports():
    """__dlpack__ that calls back into the library, clears plans and raises."""
    code = """
import numpy as np, msa
q = np.ones((1, 1, 16), np.float32)
class Nested:
    def __dlpack__(self, **keywords):
        msa.plans.clear()
        msa.dense_attention(q, q, q)
        return q.__dlpack__(**keywords)
    def __dlpack_device__(self):
        return (1, 0)
for _ in range(50):
    assert np.allclose(msa.dense_attention(q, Nested(), Nested()), 1)
"""
    runs(code)


def test_a_forked_child_may_compute_with_one_thread():
    """OpenMP's threads do not survive fork(): a child uses one thread, or is started afresh."""
    code = """
import os, warnings, numpy as np, msa
warnings.simplefilter("ignore", DeprecationWarning)
q, kv = np.ones((64, 4, 16), np.float32), np.ones((512, 2, 16), np.float32)
msa.dense_attention(q, kv, kv, threads=2)
child = os.fork()
if child == 0:
    os._exit(0 if np.allclose(msa.dense_attention(q, kv, kv, threads=1), 1) else 1)
_, status = os.waitpid(child, 0)
assert status == 0
"""
    runs(code)


def test_debug_allocator_finds_nothing():
    code = """
import numpy as np, msa
q = np.ones((1, 1, 16), np.float32)
for _ in range(200):
    msa.dense_attention(q, q, q, return_lse=True)
    try:
        msa.dense_attention(q, q[0], q)
    except msa.Error as error:
        assert error.argument == "k"
"""
    runs(code, "-X", "dev", "-W", "ignore", environment={"PYTHONMALLOC": "debug"})


def test_a_second_interpreter_is_refused_or_right():
    code = """
import sys
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    sys.exit(0)
import msa
first = interpreters.create()
try:
    interpreters.run_string(first, "import msa\\nassert msa.plans.info().size == 0")
except interpreters.RunFailedError as error:
    assert "does not support loading in subinterpreters" in str(error), error
interpreters.destroy(first)
msa.plans.clear()
"""
    runs(code)


def test_one_openmp_beside_torch():
    """The library and torch share one libgomp, whichever comes first."""
    pytest.importorskip("torch")
    for order in ("torch, msa", "msa, torch"):
        code = f"""
import {order}
import numpy as np
q = np.ones((8, 1, 16), np.float32)
msa.dense_attention(q, q, q)
print(len({{line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}}))
"""
        assert runs(code) == "1"


def test_the_tool_runs_or_says_that_it_is_missing():
    done = subprocess.run([sys.executable, "-m", "msa", "info"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": SITE})
    if (pathlib.Path(msa.__file__).parent / "bin" / "msa").exists():
        assert done.returncode == 0 and msa.__version__ in done.stdout
    else:
        assert done.returncode == 2 and "built without the tool" in done.stderr


def test_another_module_of_the_same_name_is_no_trouble():
    """Our msa.torch never hides torch itself."""
    pytest.importorskip("torch")
    assert runs("import msa.torch, torch; print(torch.__name__, msa.torch.__name__)") == "torch msa.torch"
