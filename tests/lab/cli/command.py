"""Run ``python -m foveate`` as a user would: another process, another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import foveate as package_here
import foveate_reference as reference

Here = Callable[..., "subprocess.CompletedProcess[str]"]
"""The fixture ``here``: the command without a process of its own."""

needs_weights = pytest.mark.skipif(
    not all((path / "model.safetensors").is_file() for path in reference.PATHS.values()),
    reason="the reference models' weights are missing",
)


def foveate(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The finished command; COLUMNS keeps rich from breaking lines that a test looks for."""
    sources = [str(Path(str(package.__file__)).parents[1]) for package in (package_here, reference)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(sources),  # also where they were found by a relative path
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    command = [sys.executable, "-m", "foveate", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=300, check=False)


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command with ``--json`` printed, which must be JSON and nothing else."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def draw(path: Path, index: int = 0, size: tuple[int, int] | None = None) -> reference.Picture:
    """Save a scene of the test split as an image file."""
    scene = reference.make_scene(reference.split_seed("test", index))
    image = Image.fromarray(scene.image)
    (image if size is None else image.resize(size)).save(path)
    return scene
