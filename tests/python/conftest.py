# SPDX-License-Identifier: MIT
"""What every test of the Python package gets: kinds of arrays, poisoned allocations, a time limit."""
from __future__ import annotations

import pathlib
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import arrays  # noqa: E402

LIMIT = 10.0  # seconds a test may take, unless it is marked with more


def pytest_configure(config):
    config.addinivalue_line("markers", "seconds(n): the test may take so long")
    config.addinivalue_line("markers", "gpu: needs a GPU")


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped has not run: it fails")


def not_run(config, report):
    """Turns the report of a skip into that of a failure."""
    if config.getoption("--no-skips") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome, report.longrepr = "failed", f"not run, and --no-skips asks for it: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    not_run(item.config, outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    not_run(collector.config, outcome.get_result())


@pytest.fixture(params=list(arrays.KINDS))
def xp(request):
    """One kind of array after the other."""
    return arrays.make(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that the package allocates is full of NaN, so that what nobody wrote shows."""
    def poison(array):
        if np.issubdtype(array.dtype, np.floating):
            array.fill(np.nan)
        elif array.dtype.kind in "iu":
            array.fill(77)
        return array

    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda *args, **keywords: poison(empty(*args, **keywords)))


@pytest.fixture(autouse=True)
def quiet(capfd):
    """The package prints nothing."""
    yield
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """A test that takes too long is a failure: the whole run has three minutes."""
    start = time.perf_counter()
    outcome = yield
    marker = item.get_closest_marker("seconds")
    limit = marker.args[0] if marker else LIMIT
    if outcome.excinfo is None and time.perf_counter() - start > limit * 3:
        pytest.fail(f"took {time.perf_counter() - start:.1f} s, more than three times {limit} s")
