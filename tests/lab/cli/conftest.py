"""The command in this process, for tests that need no process of their own: importing torch again takes seconds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command import Here

from foveate.lab import terminal
from foveate.lab.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """``here(*words)`` calls the entry point of the command ``foveate`` in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.out, "width", 200)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr("sys.argv", ["foveate", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        seen = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(stop.value.code or 0), seen.out, seen.err)

    return call
