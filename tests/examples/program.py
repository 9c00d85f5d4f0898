"""Run a program as a user starts it: another process, another folder, nothing from the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import foveate
import foveate_reference

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(file: Path, *words: object, cwd: Path) -> str:
    """What a program prints."""
    sources = [str(Path(str(package.__file__)).resolve().parents[1]) for package in (foveate, foveate_reference)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(file), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
