# SPDX-License-Identifier: MIT
"""The checks of ranks_main.py over NCCL, a GPU for each rank. `./test.sh --gpu` runs them where there are two or more."""
from __future__ import annotations

import groups
import pytest

torch = pytest.importorskip("torch", reason="ranks exchange tensors of torch")

GPUS = torch.cuda.device_count()
RANKS = 4 if GPUS >= 4 else 2


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each check said on each rank."""
    if GPUS < 2:  # as every test of GPUs: skipped without them, which fails in `./test.sh --gpu`
        pytest.skip(f"ranks over NCCL want a GPU each, this machine has {GPUS}")
    return groups.run(tmp_path_factory.mktemp("gpus"), "--nccl", str(RANKS))


@pytest.mark.seconds(60)
@pytest.mark.parametrize("name", [name for name, ranks in groups.checks_on("gpus") if ranks == RANKS])
def test_on_gpus(said, name):
    groups.expect_ok(said, name, RANKS)
