"""Training runs of a few steps: the loss falls, the curriculum is walked, and a run that stopped goes on as if it had not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import foveate
import foveate_reference as reference
from foveate import ADSC
from foveate.errors import ConfigError, FoveateError, TrainingError
from foveate.lab.terminal import CommandError
from foveate.lab.train import method as face
from foveate.lab.train.method import Request
from foveate.models import family_of
from foveate.training import run as training
from foveate.training.collator import Collator
from foveate.training.pupil import Pupil
from foveate.training.recipe import Recipe

pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(
    not all((path / "model.safetensors").is_file() for path in reference.PATHS.values()),
    reason="the reference models' weights are missing",
)
SMALL = Recipe(rank=4, alpha=8, lr=5e-3, warmup=0.0, steps=6, batch=2, save_every=3)


def silent(text: str) -> None:
    pass


def request(out: Path, **options: Any) -> Request:
    return replace(Request(out, ADSC(), samples=20, recipe=SMALL, device="cpu"), **options)


SAID: list[str] = []


def leaves_to_the_matrix(model: str = "", tower: str = "", name: str = "") -> bool:
    """That a model learns follows from its gradients, which are in the contract of every family; the towers differ by name."""
    return model != "reference" and bool(model) and not tower


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    found = face.train(request(out), False, SAID.append)
    assert found.steps == 6
    assert [step for step, _ in found.stages] == [0, 2, 4]
    assert [keep for _, keep in found.stages] == pytest.approx([1 / 9, 2 / 9, 1 / 3])
    return out


@pytest.mark.parametrize("model", ["reference", "reference-llava"])
def test_the_loss_falls(model: str, tmp_path: Path) -> None:
    """On the same few questions again and again, at the hardest ratio."""
    recipe = replace(SMALL, steps=8, lr=2e-2, batch=4, save_every=0)
    method = ADSC(keep=1 / 9)
    asked = request(tmp_path / "run", model=model, recipe=recipe, curriculum="constant", method=method, samples=4)
    found = face.train(asked, False, silent)
    assert sum(found.losses[-3:]) < 0.7 * sum(found.losses[:3])
    assert all(loss == loss for loss in found.losses)


def test_the_folder_restores_adapter_and_method(trained: Path) -> None:
    model, processor = reference.load()
    sample = reference.samples("test", tasks=["color"], per_task=1)[0]
    inputs: Any = processor.apply_chat_template(
        [sample.messages[:1]], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        stock = model(**inputs).logits
        with foveate.compress(model, ADSC()):
            untrained = model(**inputs).logits
        with foveate.compress(model, str(trained)) as handle:
            assert handle.method == ADSC()
            assert not torch.equal(model(**inputs).logits, untrained)
            assert handle.report().mean_tokens == pytest.approx(100 / 3, abs=1)
        assert torch.equal(model(**inputs).logits, stock)


def test_going_on_equals_never_stopping(trained: Path, tmp_path: Path) -> None:
    """From the checkpoint after step 3, in the middle of a stage."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / training.CHECKPOINTS / "checkpoint-6")
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    found = face.train(request(tmp_path / "run"), False, silent)
    assert [step for step, _ in found.stages] == [3, 4]
    assert [keep for _, keep in found.stages] == pytest.approx([2 / 9, 1 / 3])
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (trained, tmp_path / "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_left_as_it_is(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    found = face.train(request(trained), False, silent)
    assert (found.steps, len(found.losses)) == (6, 6)
    assert [keep for _, keep in found.stages] == pytest.approx([1 / 9, 2 / 9, 1 / 3])
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_the_card_tells_how_to_load_it(trained: Path) -> None:
    text = (trained / "README.md").read_text()
    assert f'foveate.compress(model, "{trained.name}")' in text
    assert repr(ADSC()) in text
    assert "PeftModel" not in text


def test_progress_is_told(trained: Path) -> None:
    steps = [line for line in SAID if line.startswith("step ")]
    assert [line.split(",")[0] for line in steps] == [f"step {i} of 6" for i in range(1, 7)]
    assert all(float(line.rpartition(" ")[2]) > 0 for line in steps)


def test_fewer_steps_than_stages(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="2 steps are too few for the 3 stages"):
        face.train(request(tmp_path / "run", recipe=replace(SMALL, steps=2)), False, silent)


def test_only_the_language_model_is_adapted(trained: Path) -> None:
    names = load_file(trained / "adapter_model.safetensors")
    assert len(names) == 10 * len(training.PROJECTIONS) * 2
    assert all(".language_model.layers." in name for name in names)
    config = json.loads((trained / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "reference"


@pytest.mark.parametrize(
    ("model", "tower"), [("reference", ".visual.blocks."), ("reference-llava", ".vision_tower.encoder.layers.")]
)
def test_the_tower_is_adapted_if_asked(model: str, tower: str, tmp_path: Path) -> None:
    """Every linear layer of the blocks that the language model's features come from, and all of them learn."""
    method = ADSC(layers=(0,))
    asked = request(tmp_path / "run", model=model, recipe=replace(SMALL, steps=1, tower=True), method=method)
    face.train(replace(asked, curriculum="constant"), False, silent)
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    ends = {name: weight for name, weight in weights.items() if tower in name and ".lora_B." in name}
    stock, _ = reference.load({"reference": "qwen2_5_vl"}.get(model, "llava"))
    found = [name for name, module in stock.named_modules() if tower in name and isinstance(module, torch.nn.Linear)]
    last = {int(name.split(tower)[1].split(".")[0]) for name in ends}
    assert last == set(range(family_of(stock.config).tower.last_block(stock.config) + 1))
    assert len(ends) == sum(int(name.split(tower)[1].split(".")[0]) in last for name in found)
    assert all(weight.any() for weight in ends.values())  # LoRA's second matrix begins at zero
    with foveate.compress(stock, str(tmp_path / "run")):
        assert sum(tower in name and ".lora_B." in name for name, _ in stock.named_parameters()) == len(ends)


def test_an_error_in_a_step_leaves_no_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []
    plain = Pupil.leave

    def leave(self: Pupil) -> None:
        removed.append(self._handle)
        plain(self)

    monkeypatch.setattr(Pupil, "leave", leave)
    monkeypatch.setattr(Collator, "__call__", _Second(Collator.__call__))
    with pytest.raises(TrainingError, match="cannot train into"):
        face.train(request(tmp_path / "run"), False, silent)
    assert removed[-1] is None or "(removed)" in repr(removed[-1])


class _Second:
    """Works once, as the first call is a trial."""

    def __init__(self, call: Any) -> None:
        self.call, self.calls = call, 0

    def __get__(self, instance: Any, owner: Any) -> Any:
        def batch(chats: Any) -> Any:
            self.calls += 1
            if self.calls > 2:
                raise RuntimeError("boom")
            return self.call(instance, chats)

        return batch


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "rank": (dict(recipe={"rank": 0}), "Recipe.rank=0"),
    "dropout": (dict(recipe={"dropout": 1.0}), "Recipe.dropout"),
    "steps": (dict(recipe={"steps": -1}), "Recipe.steps=-1"),
    "curriculum": (dict(curriculum="harder"), "choose hard-to-easy"),
    "unreachable": (dict(method=ADSC(keep=0.3, layers=(2,))), "cannot be reached"),
    "layers": (dict(method=ADSC(layers=(99,))), "no decoder layer 99"),
    "model": (dict(model="./nowhere"), "no model folder"),
    "dtype": (dict(dtype="int8"), "--dtype 'int8'"),
    "another method": (dict(method=foveate.Stride()), r"has nothing to train; what has: adaptivevoco, adsc, "),
    "no token": (dict(method=ADSC(keep=0.0)), "keeps no token, so there is nothing to choose"),
}


def attempt(out: Path, **options: Any) -> None:
    if "recipe" in options:
        options = {"recipe": replace(SMALL, **options["recipe"])}
    face.train(request(out, **options), False, silent)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_training(name: str, tmp_path: Path) -> None:
    options, sentence = MISTAKES[name]
    with pytest.raises(FoveateError, match=sentence):
        attempt(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_folders(trained: Path, tmp_path: Path) -> None:
    """A folder of the same run is gone on with; anything else stays as it is, unless somebody says so."""
    for change in (dict(curriculum="constant"), dict(recipe=replace(SMALL, lr=1e-4))):
        with pytest.raises(CommandError, match=f"is of another run, whose {next(iter(change))} was .* --overwrite"):
            face.train(request(trained, **change), False, silent)
    for name in ("file", "folder/mine.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(CommandError, match="is there already: give --out another name"):
            face.train(request(tmp_path / name.partition("/")[0]), False, silent)
        assert (tmp_path / name).read_text() == "mine"


def test_begin_anew(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "mine.txt").write_text("mine")
    other = request(run, curriculum="constant", recipe=replace(SMALL, steps=1))
    face.train(other, True, silent)
    assert json.loads((run / face.RECORD).read_text())["curriculum"] == "constant"
    assert (run / "mine.txt").read_text() == "mine"


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(trained: Path, tmp_path: Path) -> None:
    record = json.loads((trained / face.RECORD).read_text())
    begun = {name: value for name, value in record.items() if name not in ("steps", "losses", "stages")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / face.RECORD).write_text(json.dumps(begun))
    assert face.train(request(tmp_path / "run"), False, silent).losses == tuple(record["losses"])


def test_a_missing_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(TrainingError, match=r"`pip install 'peft>=[\d.]+'.*` gets it"):
        face.train(request(tmp_path / "run"), False, silent)


def test_the_recipe_checks_types() -> None:
    with pytest.raises(ConfigError, match="rank"):
        Recipe(rank="many")  # type: ignore[arg-type]
