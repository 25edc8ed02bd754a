# SPDX-License-Identifier: MIT
"""Every check of ranks_main.py, on groups of 2, 3 and 4 processes over gloo."""
from __future__ import annotations

import groups
import pytest

pytest.importorskip("torch", reason="ranks exchange tensors of torch")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each check said on each rank of each group."""
    return groups.run(tmp_path_factory.mktemp("ranks"), "2", "3", "4")


@pytest.mark.parametrize("name, ranks", groups.checks_on("cpus"))
def test_on_real_processes(said, name, ranks):
    groups.expect_ok(said, name, ranks)
