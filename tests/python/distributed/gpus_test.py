# SPDX-License-Identifier: MIT
"""The checks of ranks_main.py over NCCL, a GPU for each rank. `./test.sh --gpu` runs them where there are two or more."""
from __future__ import annotations

import groups
import pytest

torch = pytest.importorskip("torch", reason="ranks exchange tensors of torch")

GPUS = torch.cuda.device_count()
SIZES = (2, 4) if GPUS >= 4 else (2,)  # of a group: what is for two ranks is not run by four


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each check said on each rank of each group."""
    if GPUS < 2:  # as every test of GPUs: skipped without them, which fails in `./test.sh --gpu`
        pytest.skip(f"ranks over NCCL want a GPU each, this machine has {GPUS}")
    return {key: outcome for ranks in SIZES
            for key, outcome in groups.run(tmp_path_factory.mktemp("gpus"), "--nccl", str(ranks)).items()}


@pytest.mark.seconds(120)
@pytest.mark.parametrize("name, ranks", [check for check in groups.checks_on("gpus") if check[1] in SIZES])
def test_on_gpus(said, name, ranks):
    groups.expect_ok(said, name, ranks)
