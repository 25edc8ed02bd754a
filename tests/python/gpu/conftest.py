# SPDX-License-Identifier: MIT
"""Tests of this folder need a GPU; without one each is skipped, which says so."""
import pytest


@pytest.fixture(autouse=True)
def hopper():
    torch = pytest.importorskip("torch", reason="torch drives the GPU here")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip(f"compute capability {torch.cuda.get_device_capability()}, not 9.0")
