"""Training of what is beside a frozen model: folders, going on, budgets afterwards, two stages, a target of the model's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import foveate
import foveate_reference as reference
from foveate import CoViPAL, QueCC, RelevanceNet, VisionSelector, trained
from foveate.errors import AdapterError, FoveateError
from foveate.lab.train import exhibits
from foveate.lab.train import method as face
from foveate.lab.train.method import Request
from foveate.training.data import Chats
from foveate.training.recipe import Recipe
from foveate.training.run import CHECKPOINTS, Plan, Run
from foveate.training.trainer import rate_at

pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(
    not all((path / "model.safetensors").is_file() for path in reference.PATHS.values()),
    reason="the reference models' weights are missing",
)
SMALL = Recipe(lr=1e-2, warmup=0.0, steps=4, batch=2, save_every=2)


def request(out: Path, method: foveate.Method, recipe: Recipe = SMALL) -> Request:
    return Request(out, method, "reference-llava", samples=8, recipe=recipe, device="cpu")


@pytest.fixture(scope="module")
def selector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps."""
    out = tmp_path_factory.mktemp("selector") / "run"
    said: list[str] = []
    found = face.train(request(out, VisionSelector()), False, said.append)
    assert (found.steps, found.stages, len(found.losses), len(found.agreement)) == (4, ((0, 0.2),), 4, 4)
    assert all(0 < share <= 1 for share in found.agreement)
    lines = [line for line in said if line.startswith("step ")]
    assert [word.partition(" ")[0] for word in lines[-1].split(", ")[1:]] == ["loss", "answer", "binarise", "agreement"]
    return out


def test_the_folder_is_data_and_goes_on_the_model_that_it_is_for(selector: Path) -> None:
    files = {path.name for path in selector.iterdir()} - {CHECKPOINTS}
    assert files == {trained.METHOD, trained.MODULES, face.RECORD, "README.md"}
    assert json.loads((selector / trained.METHOD).read_text())["files"] == [trained.MODULES]
    model, _ = reference.load("llava")
    untrained = dict(foveate.compress(model, VisionSelector()).modules.state_dict())
    foveate.attached(model).remove()  # type: ignore[union-attr]
    with foveate.compress(model, selector, keep=0.5) as handle:
        assert handle.method == VisionSelector(keep=0.5)
        assert not any(torch.equal(value, untrained[name]) for name, value in handle.modules.state_dict().items())
    with pytest.raises(AdapterError, match=r"is for a llava .* and this model is a qwen2_5_vl"):
        foveate.compress(reference.load()[0], selector)
    with pytest.raises(FoveateError, match=r"has its options already \(only keep may be another one\)"):
        foveate.compress(model, selector, positions="renumber")


def test_going_on_equals_never_stopping(selector: Path, tmp_path: Path) -> None:
    shutil.copytree(selector, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS / "checkpoint-4")
    (tmp_path / "run" / trained.MODULES).unlink()
    with pytest.raises(AdapterError, match="has no foveate_modules"):
        foveate.compress(reference.load("llava")[0], tmp_path / "run")
    found = face.train(request(tmp_path / "run", VisionSelector()), False, lambda line: None)
    one, other = (load_file(folder / trained.MODULES) for folder in (selector, tmp_path / "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert found.losses == tuple(json.loads((selector / face.RECORD).read_text())["losses"])
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS / "checkpoint-4")
    (tmp_path / "run" / trained.MODULES).unlink()
    (tmp_path / "run" / CHECKPOINTS / "checkpoint-2" / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(FoveateError, match="cannot go on from"):
        face.train(request(tmp_path / "run", VisionSelector()), False, lambda line: None)


@pytest.fixture(scope="module")
def chats() -> Chats:
    return exhibits.load("train", 4, seed=0, tile=160)


@pytest.mark.parametrize("method", [CoViPAL(keep=0.3), RelevanceNet(), QueCC(keep=0.25)])
def test_stages_and_targets(method: foveate.Method, chats: Chats, tmp_path: Path) -> None:
    """A step for each stage; LoRA is written where a stage trains it, beside the learned parts."""
    stages = len(method.stages)
    recipe = Recipe(steps=stages, batch=1, accumulate=2, rank=2)
    plan = Plan(tmp_path / "run", "reference-llava", method, recipe=recipe)
    found = Run(*reference.load("llava"), chats, plan, lambda line: None).train()
    assert [step for step, _ in found.stages] == list(range(stages))
    assert all(loss == loss for loss in found.losses)
    model, _ = reference.load("llava")
    with foveate.compress(model, tmp_path / "run") as handle:
        assert handle.method == method
        lora = any(".lora_A." in name for name, _ in model.named_parameters())
    assert lora == isinstance(method, QueCC) == (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_each_stage_has_a_learning_rate_of_its_own() -> None:
    rates = [rate_at(step, 20, (1.0, 0.1), 0.2) for step in range(21)]
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[10:13] == [0.0, 0.05, 0.1]
    assert rates[2:10] == sorted(rates[2:10], reverse=True)
    assert rates[20] == pytest.approx(0)
    assert rate_at(0, 1, (3.0,), 0.0) == 3.0
