"""CI promises its suites: one that fails, or that time does not reach, fails the whole; what follows is left out by name."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / ".ci" / "run"
PROMISED = ("lint", "results-check", "docs-check", "test", "wheel-test", "test-browser", "test-vllm", "test-oldest")

pytestmark = pytest.mark.skipif(
    any(not shutil.which(tool) for tool in ("bash", "make", "timeout")), reason="CI runs where these are"
)


def run(folder: Path, *, bad: str = "-", slow: str = "-", limit: int = 60) -> tuple[int, list[str], str]:
    """The exit status, the targets that were made, and the last line. No suite has a budget of its own."""
    (folder / ".ci").mkdir()
    text = RUN.read_text()
    for line in text.split("promised=(")[1].split(")")[0].split("\n"):
        if line.strip():
            text = text.replace(line.split()[0] + " ", '"0 ', 1)
    (folder / ".ci" / "run").write_text(text)
    (folder / "Makefile").write_text(
        '%:\n\t@echo "made $@"\n\t@if [ "$@" = $(SLOW) ]; then sleep 20; fi\n\t@test "$@" != $(BAD)\n'
    )
    (folder / "chromium").write_text("#!/bin/sh\n")
    (folder / "chromium").chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    made = subprocess.run(
        ["bash", ".ci/run"],
        cwd=folder,
        env=os.environ | {"PATH": path, "BAD": bad, "SLOW": slow, "FOVEATE_CI_LIMIT": str(limit), "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = made.stdout.splitlines()
    return made.returncode, [line.split()[1] for line in lines if line.startswith("made ")], lines[-1]


def test_all_is_well(tmp_path: Path) -> None:
    assert run(tmp_path) == (0, [*PROMISED, "test-lmms"], "left out: nothing")


def test_what_fails_ends_it(tmp_path: Path) -> None:
    status, made, last = run(tmp_path, bad="wheel-test")
    assert (status != 0, made[-1]) == (True, "wheel-test")
    assert last.startswith("left out: make test-browser: not reached")


def test_a_promise_that_time_breaks_fails(tmp_path: Path) -> None:
    status, made, last = run(tmp_path, slow="test", limit=4)
    assert (status, made[-1]) == (1, "test")
    assert last.endswith("make test-lmms: not reached")


def test_what_follows_is_left_out(tmp_path: Path) -> None:
    status, made, last = run(tmp_path, slow="test-lmms", limit=4)
    assert (status, made[-1], last) == (0, "test-lmms", "left out: make test-lmms: no time")
