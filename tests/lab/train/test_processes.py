"""Training in several processes: what comes out is what one process makes of the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import foveate_reference as reference
from foveate import trained
from foveate.adapter import WEIGHTS
from foveate.lab.train.method import RECORD

pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(
    not all((path / "model.safetensors").is_file() for path in reference.PATHS.values()),
    reason="the reference models' weights are missing",
)
MAKES = {"visionselector": trained.MODULES, "vistog": WEIGHTS}


def leaves_to_the_matrix(name: str) -> bool:
    """Three processes that load torch take longer than `make test` has."""
    return True


@pytest.mark.parametrize("name", MAKES)
def test_two_processes_make_what_one_makes(name: str, tmp_path: Path) -> None:
    """With gloo; a stage that trains a part of what another one trains, too."""
    settings = ["steps=2", "lr=1e-2", "warmup=0", "rank=2", "dropout=0", "save_every=0"]
    words = ["-m", "foveate", "train", name, "--model", "reference-llava", "--samples", "2", "--device", "cpu"]
    words += [word for each in settings for word in ("--set", each)]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    ways = {"one": [*words, "--set", "batch=2"], "two": [*launch, *words, "--set", "batch=1"]}
    for out, command in ways.items():
        asked = [sys.executable, *command, "--out", str(tmp_path / out)]
        done = subprocess.run(asked, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("attaches it") == 1
    one, two = (json.loads((tmp_path / out / RECORD).read_text())["losses"] for out in ways)
    assert two[0] == pytest.approx(one[0], rel=1e-3), "of the same two chats"
    assert two[1] == pytest.approx(one[1], rel=0.1), "after the same step, but for what rounding does to Adam's first"
    made = [load_file(tmp_path / out / MAKES[name]) for out in ways]
    assert made[0].keys() == made[1].keys()
