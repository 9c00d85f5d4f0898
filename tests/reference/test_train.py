"""Training: it learns, it can be interrupted, and it says so when a checkpoint is not its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from foveate_reference.batches import GRID, IGNORED, LABEL_SIZES, Recipe, batches_ahead, make_batch
from foveate_reference.exhibits import EXHIBITS
from foveate_reference.model import ARCHITECTURES, export, make_config, make_model
from foveate_reference.muon import Muon
from foveate_reference.scenes import MAX_QUESTIONS
from foveate_reference.train import CHECKPOINT, RECIPES, Learner, TrainConfig, train
from foveate_reference.vocabulary import TASKS

TINY = TrainConfig(
    tower_steps=2,
    scenes_steps=1,
    pointer_steps=2,
    joint_steps=2,
    batch_size=2,
    layers=2,
    hidden=64,
    tower_depth=2,
    tower_hidden=96,
    warmup=2,
    checkpoint_every=4,
    validation_images=1,
)


def scenes(*seeds):
    return [Recipe("scene", seed) for seed in seeds]


def test_labels_and_pointers_fit_the_questions():
    batch = make_batch([*scenes(0, 1), Recipe("chart", 2), Recipe("table", 3)])
    assert batch.labels.shape == (4, len(LABEL_SIZES), 1, GRID, GRID)
    assert ((batch.labels >= 0) | (batch.labels == IGNORED)).all()
    assert (batch.labels < torch.tensor(LABEL_SIZES)[:, None, None, None]).all()
    assert batch.questions.shape == (4, MAX_QUESTIONS, 4)
    assert ((batch.tasks >= 0) == (batch.answers >= 0)).all()
    lookups = [TASKS.index(task) for task in ("color", "read", "where", "side", "chart", "table")]
    located = batch.pointers.flatten(3)[torch.isin(batch.tasks, torch.tensor(lookups))].any(-1)
    assert located.float().mean() > 0.95  # a cell belongs to one object, so a small one may own none
    assert not batch.pointers[batch.tasks == TASKS.index("texture")].any()


@pytest.mark.parametrize("kind", EXHIBITS)
def test_pointers_lie_on_the_asked_objects(kind):
    batch = make_batch([Recipe(kind, 5)])
    assert batch.pointers.shape == (*batch.questions.shape[:2], 2, *batch.labels.shape[2:])
    there = batch.labels[0, 0] > 0
    assert not (batch.pointers[0] & ~there).any()


def test_batches_made_ahead_come_in_order():
    plan = [scenes(0, 1), [Recipe("scene", 2, True), Recipe("scene", 3, True)], scenes(4)]
    for recipes, batch in zip(plan, batches_ahead(plan, ahead=1), strict=True):
        for here, there in zip(make_batch(recipes), batch, strict=True):
            assert torch.equal(here, there)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_falls(architecture):
    config = dataclasses.replace(TINY, architecture=architecture, tower_steps=12, warmup=1)
    learner = Learner(config, seed=0)
    batch = make_batch(scenes(0, 1))
    losses = [learner.step(0, batch) for _ in range(12)]
    assert losses[0].keys() == ({"labels", "summary"} if architecture == "llava" else {"labels"})
    assert all(losses[-1][name] < 0.9 * losses[0][name] for name in losses[0])


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    lines = []

    class StopRunError(Exception):
        pass

    def stop(line):
        raise StopRunError(line)

    whole = train(tmp_path / "whole", config=TINY, log=lines.append)
    with pytest.raises(StopRunError):  # the first line comes after the checkpoint of step 4
        train(tmp_path / "part", config=TINY, log=stop)
    resumed = train(tmp_path / "part", config=TINY, resume=True, log=lines.append)
    one, other = load_file(tmp_path / "whole" / CHECKPOINT), load_file(tmp_path / "part" / CHECKPOINT)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert any("tasks color" in line for line in lines)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    learner = Learner(TINY, seed=0)
    learner.save(tmp_path / CHECKPOINT, 1, seed=0)
    with pytest.raises(ValueError, match="from another run"):
        learner.load(tmp_path / CHECKPOINT, seed=1)


def test_phases_follow_each_other():
    assert [TINY.phase(step) for step in range(TINY.steps)] == ["tower"] * 2 + ["scenes"] + ["pointer"] * 2 + [
        "joint"
    ] * 2
    for config in RECIPES.values():
        rates = [config.rates(step) for step in range(config.steps)]
        assert all(0 <= rate <= 1 for pair in rates for rate in pair)
        assert rates[-1][1] < 0.05


def test_the_large_recipe_trains_at_a_fraction_of_its_size(tmp_path):
    whole = RECIPES["large"]
    parameters = Learner(whole, seed=0).model.num_parameters()
    assert 20e6 < parameters < 60e6
    small: dict[str, Any] = dict(layers=2, hidden=128, tower_depth=2, tower_hidden=48)
    steps: dict[str, Any] = dict(
        tower_steps=1, scenes_steps=1, pointer_steps=1, joint_steps=1, batch_size=2, validation_images=1
    )
    lines = []
    folder = train(tmp_path, config=dataclasses.replace(whole, **small, **steps), log=lines.append)
    assert (folder / "model.safetensors").is_file()
    assert "tasks color" in lines[-1]


def test_large_weights_are_saved_in_small_files(tmp_path):
    folder = export(make_model(make_config(layers=6, hidden=512), seed=0), tmp_path / "model")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    assert max(path.stat().st_size for path in files) <= 16.1e6
    assert AutoModelForImageTextToText.from_pretrained(folder).num_parameters() > 14e6


def test_muon_in_float32_does_what_torch_does_in_bfloat16():
    torch.manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 24), (8, 8)]
    mine, theirs = ([torch.nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    for a, b in zip(mine, theirs, strict=True):
        a.data.copy_(b.data)
    ours, torchs = Muon(mine, lr=0.1, weight_decay=0.01), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.01)
    for _ in range(3):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        before = [a.detach().clone() for a in mine]
        ours.step()
        torchs.step()
        for a, b, old in zip(mine, theirs, before, strict=True):
            torch.testing.assert_close(a, b, atol=0.004, rtol=0.0)
            assert (a - old).norm() > 0.1 * min(a.shape) ** 0.5 * 0.6
            b.data.copy_(a.data)
    assert all(state["momentum_buffer"].dtype == torch.float32 for state in ours.state.values())


def test_muon_leaves_alone_what_has_no_gradient():
    matrix = torch.nn.Parameter(torch.ones(3, 2))
    Muon([matrix]).step()
    assert matrix.equal(torch.ones(3, 2))
