# SPDX-License-Identifier: MIT
"""Every check of ranks_main.py, on groups of 2, 3 and 4 processes over gloo."""
from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import msa

pytest.importorskip("torch", reason="ranks exchange tensors of torch")

MAIN = pathlib.Path(__file__).with_name("ranks_main.py")
CHECKS = [(name, int(ranks)) for sizes, name in re.findall(r"^@check\((.*)\)\ndef (\w+)", MAIN.read_text(), re.M)
          for ranks in sizes.split(", ")]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each check said on each rank of each group."""
    report = tmp_path_factory.mktemp("ranks") / "report.json"
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(msa.__file__).parents[1])}
    subprocess.run([sys.executable, "-W", "ignore", str(MAIN), str(report), "2", "3", "4"], env=environment, check=True,
                   capture_output=True, timeout=130)
    return json.loads(report.read_text())


@pytest.mark.parametrize("name, ranks", CHECKS)
def test_on_real_processes(said, name, ranks):
    for rank in range(ranks):
        wanted = "died" if name == "a_rank_that_dies" and rank == ranks - 1 else "ok"
        outcome = said.get(f"{ranks}.{rank}", {}).get(name, ["never came to it"])[0]
        assert outcome == wanted, f"rank {rank} of {ranks}:\n{outcome}"
