"""Reads a page as a person would: writes the files that it shows, and runs its programs and commands one after another.

    python tests/docs/reader.py PAGE ...        # in an empty folder: prints every block with what it printed

A block with a title is a file. ``python`` blocks of a page share their names, ``bash`` blocks run in its folder; where one
calls ``foveate`` alone, the entry point is called in this process, as importing torch again takes seconds. ``console`` blocks
are what a test cannot run (they install or download); of these only ``pip install -e .`` is done, as far as it registers entry
points. A ``text`` block is what the block before it prints.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is (or ""), its text, and what the page says it prints."""

    language: str
    file: str
    text: str
    prints: str | None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, those of output with what they follow."""
    found = [match.groups() for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [
        Block(language, title or "", text, following[2] if following[0] == "text" else None)
        for (language, title, text), following in zip(found, [*found[1:], ("", "", "")])
        if language != "text"
    ]


def same(said: str, printed: str) -> bool:
    """Whether a page says what was printed: up to numbers and spaces; a line ``...`` stands for any number of lines."""
    lines = [" ".join(_NUMBER.sub("#", line).split()) for line in said.strip().splitlines()]
    pattern = "\n".join(r"(?:.*\n?)*?" if line == "..." else re.escape(line) for line in lines)
    got = "\n".join(" ".join(_NUMBER.sub("#", line).split()) for line in printed.strip().splitlines())
    return re.fullmatch(pattern.replace("(?:.*\\n?)*?\n", "(?:.*\\n)*?"), got) is not None


def install(folder: Path) -> None:
    """Register the entry points of the ``pyproject.toml`` there, as an editable installation does."""
    project = (folder / "pyproject.toml").read_text(encoding="utf-8")
    [name] = re.findall(r'^name = "(.+)"$', project, re.M)
    [(group, entries)] = re.findall(r'^\[project.entry-points."(.+)"\]\n((?:\w+ = ".+"\n)+)', project, re.M)
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + entries.replace('"', ""))


def of_foveate(text: str) -> list[list[str]]:
    """The words of every command, where all are calls of ``foveate`` alone; else none."""
    commands = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    plain = not re.search(r"[|<>$`;&]", text) and all(words[:1] == ["foveate"] for words in commands)
    return commands if plain else []


def call(words: list[str]) -> None:
    """Call the entry point, as the installed command does; what it says on stderr is shown where it fails."""
    from foveate.lab.cli import main as foveate

    said, before = io.StringIO(), sys.argv
    sys.argv = words
    try:
        with contextlib.redirect_stderr(said):
            foveate()
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"{shlex.join(words)}\n{said.getvalue()}") from None
    finally:
        sys.argv = before


def read(page: Path) -> list[tuple[Block, str]]:
    """Every block, and what it printed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found, installed = [], False
    for block in blocks(page):
        printed = io.StringIO()
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, f"<{page.name}>", "exec"), names)
        elif block.language == "bash" and not installed and (commands := of_foveate(block.text)):
            with contextlib.redirect_stdout(printed):
                for words in commands:
                    call(words)
        elif block.language == "bash":
            here = {**os.environ, "PYTHONPATH": f"{Path.cwd()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
            done = subprocess.run(["bash", "-euc", block.text], env=here, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{block.text}\n{done.stdout}\n{done.stderr}")
            printed.write(done.stdout)
        elif block.text == "pip install -e .\n":
            install(Path.cwd())
            installed = True  # which only a process that starts after it sees
        found.append((block, printed.getvalue()))
    return found


def read_all(pages: Sequence[Path]) -> dict[str, list[tuple[Block, str]]]:
    """Read each page in a folder of its own; by its name what its blocks printed."""
    home, found = Path.cwd(), {}
    for page in pages:
        (home / page.stem).mkdir()
        os.chdir(home / page.stem)
        found[page.stem] = read(page)
    os.chdir(home)
    return found


def main(pages: list[Path], as_json: bool) -> None:
    """Read the pages, and print what their blocks printed."""
    sys.path.insert(0, "")
    found = read_all(pages)
    if as_json:
        print(json.dumps({name: [printed for _, printed in outcome] for name, outcome in found.items()}))
        return
    for outcome in found.values():
        print("\n".join(f"{block.text}{'-' * 80}\n{printed}" for block, printed in outcome))


if __name__ == "__main__":
    main([Path(word).resolve() for word in sys.argv[1:] if word != "--json"], "--json" in sys.argv)
