# SPDX-License-Identifier: MIT
"""Examples of the documents run, and the page that is written from docstrings is up to date."""
from __future__ import annotations

import doctest
import os
import pathlib
import re
import subprocess
import sys

import pytest

import msa

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = [page for page in sorted(DOCS.glob("*.md")) if ">>>" in page.read_text()]


def test_some_page_has_examples():
    assert DOCS / "python.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page):
    text = page.read_text().replace("```", "")
    test = doctest.DocTestParser().get_doctest(text, {"msa": msa}, page.name, str(page), 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.tries > 0 and runner.failures == 0


def test_the_readmes_programs_run():
    pytest.importorskip("torch")
    programs = re.findall(r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(), re.S)
    for program, told in zip(programs, ("the last token reads blocks", "the index branch is off by"), strict=True):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
                              env={**os.environ, "PYTHONPATH": str(pathlib.Path(msa.__file__).parents[1])})
        assert done.returncode == 0, done.stderr
        assert told in done.stdout


def test_python_page_is_not_stale():
    done = subprocess.run([sys.executable, str(DOCS / "python.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
