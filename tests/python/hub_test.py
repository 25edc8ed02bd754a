# SPDX-License-Identifier: MIT
"""The layout that the hub's `kernels` loads: made from the wheel, loaded offline, computing, beside msa itself."""
from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

LOAD = """
import pathlib, sys, torch, msa, msa.torch
from kernels import get_local_kernel
kernel = get_local_kernel(pathlib.Path(sys.argv[1]), backend="cpu")
assert kernel is not msa and kernel.__version__ == msa.__version__
q = torch.ones(2, 2, 16)
assert torch.equal(kernel.dense_attention(q, q, q), msa.dense_attention(q, q, q))
import importlib
ops = importlib.import_module(kernel.__name__ + ".torch")
assert torch.equal(ops.dense_attention(q, q, q), msa.torch.dense_attention(q, q, q))
try:
    kernel.dense_attention(q, q, 3)
except TypeError:
    pass
try:
    kernel.dense_attention(q, q, q[..., :0])
except kernel.Error as error:
    assert not isinstance(error, msa.Error)
print("loaded")
"""


def test_layout_loads_offline(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("kernels", reason="the package `kernels` is not installed")
    wheel = os.environ.get("MSA_WHEEL")
    if not wheel:
        pytest.skip("MSA_WHEEL names no wheel")
    subprocess.run([sys.executable, str(ROOT / "python" / "hub" / "layout.py"), wheel, str(tmp_path)], check=True,
                   capture_output=True)
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.stdout.strip() == "loaded", done.stderr
