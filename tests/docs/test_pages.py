"""Every program and command of the written pages runs, in an empty folder, and prints what the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import reader

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
#: Pages that run. Those that change nothing but their folder run in this process, one after another; of the others, which
#: register methods and families or set up logs, all share one of their own.
HERE = ("index", "concepts", "get-started", "train-a-compressor")
APART = ("stack", "add-a-family", "add-a-method")
RUN = (*HERE, *APART)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Empty but for the command ``foveate``, which is this checkout's."""
    command = tmp_path / "bin" / "foveate"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m foveate "$@"\n')
    command.chmod(0o755)
    (tmp_path / "page").mkdir()
    return tmp_path / "page"


@pytest.mark.parametrize("name", HERE)
def test_a_page_does_what_it_says(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(name)
    monkeypatch.chdir(folder)
    for block, got in reader.read_all([page])[name]:
        check(block, got)


def test_pages_that_add_something_do_what_they_say(folder: Path) -> None:
    pages = list(map(page_of, APART))
    here = {
        **os.environ,
        "PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    words = [sys.executable, str(ROOT / "tests" / "docs" / "reader.py"), *map(str, pages), "--json"]
    done = subprocess.run(words, cwd=folder, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    for page in pages:
        for block, got in zip(reader.blocks(page), printed[page.stem], strict=True):
            check(block, got)


def page_of(name: str) -> Path:
    """A page; the test is left out where what its commands need is missing."""
    page = ROOT / "docs" / f"{name}.md"
    for command, module in (("eval", "matplotlib"), ("train", "peft")):
        if f"\nfoveate {command}" in page.read_text():
            pytest.importorskip(module)
    return page


def check(block: reader.Block, got: str) -> None:
    assert block.prints is None or reader.same(block.prints, got), f"{block.text}\nprints\n{got}"


@pytest.mark.parametrize("name", RUN)
def test_a_page_has_something_to_run(name: str) -> None:
    """And nothing in a language that the reader would pass over."""
    languages = {block.language for block in reader.blocks(ROOT / "docs" / f"{name}.md") if not block.file}
    assert "python" in languages
    assert languages <= {"python", "bash", "console"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_installed_exists(page: Path) -> None:
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    for asked in re.findall(r"pip install '\.\[([\w,]+)\]'", page.read_text()):
        assert set(asked.split(",")) <= set(extras)


def test_a_wrong_page_is_noticed() -> None:
    assert reader.same("a 1.5\n...\nb  2\n", "a 7\nx\ny\nb 3\n")
    assert reader.same("a\n...\n", "a\nb\nc")
    assert not reader.same("a 1\n", "b 1\n")
    assert not reader.same("a\n...\nb\n", "a\nc\n")
