"""`examples/notebooks/serve.ipynb` in a real engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import foveate
import foveate_reference

ROOT = Path(__file__).parents[2]


def test_the_notebook(tmp_path: Path) -> None:
    sources = [str(Path(str(package.__file__)).parents[1]) for package in (foveate, foveate_reference)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sources), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [str(ROOT / "tests" / "examples" / "notebook.py"), str(ROOT / "examples" / "notebooks" / "serve.ipynb")]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, env=env, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lengths = [int(number) for number in re.findall(r"(\d+) tokens in the prompt\)", done.stdout)]
    assert len(lengths) == 8
    assert max(lengths) < 100  # visual tokens of an image, without a method
