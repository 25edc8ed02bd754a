# SPDX-License-Identifier: MIT
"""Starts ranks_main.py and reads what its ranks say."""
from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import msa

MAIN = pathlib.Path(__file__).with_name("ranks_main.py")


def checks_on(device):
    """(name, ranks) of every check that runs on "cpus" or "gpus", in every size of group that it is for."""
    found = re.findall(rf"^@check(?:_on_{device})?\((.*)\)\ndef (\w+)", MAIN.read_text(), re.M)
    return [(name, int(ranks)) for sizes, name in found for ranks in sizes.split(", ")]


def run(folder, *arguments):
    """What each check said on each rank of each group, by "RANKS.RANK", then by its name."""
    report = folder / "report.json"
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(msa.__file__).parents[1])}
    subprocess.run([sys.executable, "-W", "ignore", str(MAIN), str(report), *arguments], env=environment, check=True,
                   capture_output=True, timeout=190)
    return json.loads(report.read_text())


def expect_ok(said, name, ranks):
    """The check went well on every rank, but for the one that was to die."""
    for rank in range(ranks):
        wanted = "died" if name == "a_rank_that_dies" and rank == ranks - 1 else "ok"
        outcome = said.get(f"{ranks}.{rank}", {}).get(name, ["never came to it"])[0]
        assert outcome == wanted, f"rank {rank} of {ranks}:\n{outcome}"
