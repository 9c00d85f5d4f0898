"""`examples/ray_data.py`: two engines of Ray Data say what transformers says. `make test-ray` installs what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytest.importorskip("ray.data.llm", reason="make test-ray has Ray")

import saved
from served import folder
from test_offline import asked

import foveate
import foveate_reference

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data.py"


def test_two_workers_say_what_transformers_says(tmp_path: Path) -> None:
    rows = []
    for i, (size, prompt) in enumerate((((24, 32), "the cat"), ((48, 48), "the bird"), ((40, 24), "the dog")) * 2):
        saved.picture(*size, i).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": prompt})
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    sources = [str(Path(str(package.__file__)).resolve().parents[1]) for package in (foveate, foveate_reference)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 16}',  # so that a small machine runs all stages at once
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    words = ["--data", data, "--model", folder("qwen2_5_vl"), "--dtype", "float32", "--method", "luvc", "--keep", 0.5]
    words += ["--gpus", 0, "--workers", 2, "--batch-size", 2, "--max-model-len", 512, "--max-tokens", 4]
    command = [sys.executable, str(EXAMPLE), *map(str, words), "--out", "answers"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "6 answers in answers\n" in done.stdout  # among what workers log
    found = {}
    for path in (tmp_path / "answers").iterdir():
        lines = map(json.loads, path.read_text().splitlines())
        found.update({line["image"]: line["answer"].strip() for line in lines})  # as `foveate run` does
    _, want = asked(data, "stock.jsonl", method=foveate.LUVC(keep=0.5))
    assert [found[row["image"]] for row in rows] == [row["answer"] for row in want]
