"""A plugin of pytest that records which test executes which line of the package; `recording.py` starts it.

coverage.py notes the lines, with the id of the test as its context. A test that does not pass is not recorded: it cannot
notice a fault.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

DATA = Path(os.environ["FAULTS_RECORDING"])
COVERAGE = coverage.Coverage(data_file=str(DATA), source=[os.environ["FAULTS_SOURCE"]], config_file=False)
COVERAGE.start()  # before conftest.py imports the package

seconds: dict[str, float] = {}
passed: set[str] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    COVERAGE.switch_context(item.nodeid)
    start = time.perf_counter()
    try:
        return (yield)
    finally:
        seconds[item.nodeid] = time.perf_counter() - start
        COVERAGE.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        passed.add(report.nodeid)
    elif report.failed:
        passed.discard(report.nodeid)


def pytest_sessionfinish() -> None:
    COVERAGE.stop()
    COVERAGE.save()
    DATA.with_suffix(".json").write_text(json.dumps({test: seconds[test] for test in seconds if test in passed}))
