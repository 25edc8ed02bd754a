# SPDX-License-Identifier: MIT
"""examples/tutorial_m3.py runs and draws its three sparse layers."""
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[3] / "examples" / "tutorial_m3.py"


@pytest.mark.seconds(60)
def test_tutorial(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "eager gives the same tokens" in done.stdout and "refused: msa: outputs without" in done.stdout
    page = (tmp_path / "m3_blocks.html").read_text()
    assert page.count("<svg") == 3 and page.count("<rect") > 600
