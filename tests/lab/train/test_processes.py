"""Training in several processes: what comes out is what one process makes of the same batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import foveate_reference as reference
from foveate import trained

pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(
    not all((path / "model.safetensors").is_file() for path in reference.PATHS.values()),
    reason="the reference models' weights are missing",
)


def leaves_to_the_matrix(name: str) -> bool:
    """Three processes that load torch take longer than `make test` has."""
    return True


@pytest.mark.parametrize("name", ["visionselector"])
def test_two_processes_make_what_one_makes(name: str, tmp_path: Path) -> None:
    """With gloo, a step on two chats: the step of Adam is the same wherever a gradient is more than rounding."""
    settings = ["steps=1", "lr=1e-2", "warmup=0", "save_every=0"]
    words = ["-m", "foveate", "train", name, "--model", "reference-llava", "--samples", "2", "--device", "cpu"]
    words += [word for each in settings for word in ("--set", each)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ways = {"one": [*words, "--set", "batch=2"], "two": [*launch, *words, "--set", "batch=1"]}
    for out, command in ways.items():
        asked = [sys.executable, *command, "--out", str(tmp_path / out)]
        done = subprocess.run(asked, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("attaches it") == 1
    one, two = (load_file(tmp_path / out / trained.MODULES) for out in ways)
    assert one.keys() == two.keys()
    same = torch.cat([((one[key] - two[key]).abs() < 1e-4).flatten() for key in one])
    assert float(same.float().mean()) > 0.97
