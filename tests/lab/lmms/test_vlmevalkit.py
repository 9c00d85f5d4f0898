"""examples/vlmevalkit.py. VLMEvalKit is no package that an index has, so what the script touches of it is written here with its
names: `BaseModel.generate`, `supported_VLM`, and a `run.py` that makes the model by its name and asks it."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="as lmms-eval brings it")

from PIL import Image

import foveate_reference as reference

SCRIPT = Path(__file__).parents[3] / "examples" / "vlmevalkit.py"

BASE = """
class BaseModel:
    INTERLEAVE = False

    def generate(self, message, dataset=None):
        return self.generate_inner(message, dataset)
"""
RUN = """
import argparse, json
from vlmeval.config import supported_VLM

parser = argparse.ArgumentParser()
parser.add_argument("--model", nargs="+")
parser.add_argument("--data", nargs="+")
given = parser.parse_args()
model = supported_VLM[given.model[0]]()
assert model.INTERLEAVE
asked = [json.loads(line) for line in open(given.data[0])]
print(json.dumps([model.generate(message, dataset="scenes") for message in asked]))
"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "VLMEvalKit"
    (folder / "vlmeval" / "vlm").mkdir(parents=True)
    for place in ("vlmeval", "vlmeval/vlm"):
        (folder / place / "__init__.py").write_text("")
    (folder / "vlmeval" / "vlm" / "base.py").write_text(BASE)
    (folder / "vlmeval" / "config.py").write_text("supported_VLM = {}\n")
    (folder / "run.py").write_text(RUN)
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """``script(*words)`` runs it as a program would be run, and gives what it prints; nothing of the kit stays."""

    def run(*words: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", [str(SCRIPT), *words])
            patch.setattr("sys.path", list(sys.path))
            capsys.readouterr()
            runpy.run_path(str(SCRIPT), run_name="__main__")
            return capsys.readouterr().out

    yield run
    for name in [name for name in sys.modules if name.split(".")[0] == "vlmeval"]:
        del sys.modules[name]


def test_a_run(kit: Path, tmp_path: Path, script: Callable[..., str]) -> None:
    samples = reference.samples("test", tasks=["color"], per_task=6)
    lines = []
    for number, sample in enumerate(samples):
        Image.fromarray(sample.images[0]).save(tmp_path / f"{number}.png")
        image = {"type": "image", "value": str(tmp_path / f"{number}.png")}
        lines.append(json.dumps([image, {"type": "text", "value": sample.question}]))
    (tmp_path / "scenes.jsonl").write_text("\n".join(lines))
    words = ["--kit", str(kit), "--pretrained", "reference", "--max-new-tokens", "1"]
    rest = ["--", "--data", str(tmp_path / "scenes.jsonl")]
    truth = [sample.answer for sample in samples]
    right = [a == b for a, b in zip(json.loads(script(*words, *rest)), truth)]
    assert sum(right) >= 5
    less = script(*words, "--method", "stride", "--option", "keep=0.05", *rest)
    assert sum(a == b for a, b in zip(json.loads(less), truth)) < sum(right), "a twentieth of the tokens is too few"


def test_mistakes(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, sentence in (
        (["--kit", str(tmp_path)], "there is no run.py in it"),
        (["--kit", str(kit), "--method", "fastvv"], "there is no method 'fastvv'"),
        (["--kit", str(kit), "--", "--model", "x"], "the model is given by --pretrained"),
    ):
        monkeypatch.setattr("sys.argv", [str(SCRIPT), "--pretrained", "reference", *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
