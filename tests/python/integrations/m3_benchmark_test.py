# SPDX-License-Identifier: MIT
"""benchmarks/m3.py measures every row, small and on the CPU: what it times is compared with its oracle first."""
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.seconds(60)

SCRIPT = pathlib.Path(__file__).resolve().parents[3] / "benchmarks" / "m3.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, "--dry", *arguments], capture_output=True, text=True)


def test_dry_run():
    done = run("--only", "hopper.m3.8k", "--only", "hopper.m3.32k", "--only", "hopper.m3.memory.16k")
    assert done.returncode == 0, done.stderr
    assert "dry run: every row can be measured" in done.stdout
    for row in ("hopper.m3.8k", "hopper.m3.32k", "hopper.m3.32k.products", "hopper.m3.memory.16k"):
        assert f"  {row}  " in f"  {done.stderr}".replace("] ", "]  "), row


def test_no_such_row():
    done = run("--only", "hopper.m3.nothing")
    assert done.returncode != 0 and "no row has such a name" in done.stderr


@pytest.fixture
def layer(patched, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import m3

    layer = m3.Layer(m3.DRY, 256)
    layer.use("msa")
    yield m3, layer
    sys.modules.pop("m3")


def test_the_oracle_sees_a_wrong_output(layer):
    m3, layer = layer
    q, k, v = layer.states()
    blocks = layer.blocks()
    out = layer.attend(q, k, v, blocks)
    m3.check(layer, q, k, v, blocks, out)
    out[0, 255, 3] *= 1.05
    with pytest.raises(RuntimeError, match="row 255, head 0: off by"):
        m3.check(layer, q, k, v, blocks, out)


def test_the_oracle_sees_a_wrong_block(layer):
    """The best block of a row, its own aside, changed for one that was not chosen."""
    m3, layer = layer
    q, k, v = layer.states()
    blocks = layer.blocks()
    index_q, index_k = layer.index_states()
    scores = (index_k[:, 0].double() @ index_q[255, 0].double()).view(-1, 32).amax(-1)
    chosen = blocks[0, 0, 255].tolist()
    best = max(chosen[:-1], key=lambda block: scores[block])
    other = next(block for block in range(8) if block not in chosen)
    blocks[0, 0, 255, chosen.index(best)] = other
    with pytest.raises(RuntimeError, match="are not the best"):
        m3.check(layer, q, k, v, blocks, layer.attend(q, k, v, blocks))
