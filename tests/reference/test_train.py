"""Training: it learns, it can be interrupted, and it says so when a checkpoint is not its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from foveate.reference.batches import LABEL_SIZES, batches_ahead, make_batch
from foveate.reference.scenes import GRID, MAX_QUESTIONS, TASKS
from foveate.reference.train import CHECKPOINT, Learner, TrainConfig, train

TINY = TrainConfig(
    tower_steps=2,
    pointer_steps=2,
    joint_steps=2,
    batch_size=2,
    layers=2,
    hidden=64,
    tower_depth=2,
    tower_hidden=24,
    warmup=2,
    checkpoint_every=3,
    validation_images=2,
)


def test_labels_and_pointers_fit_the_questions():
    batch = make_batch([0, 1, 2])
    assert batch.labels.shape == (3, len(LABEL_SIZES), GRID * GRID)
    assert (batch.labels >= 0).all()
    assert (batch.labels < torch.tensor(LABEL_SIZES)[:, None]).all()
    assert batch.questions.shape == (3, MAX_QUESTIONS, 4)
    assert ((batch.tasks >= 0) == (batch.answers >= 0)).all()
    lookups = [TASKS.index(task) for task in ("color", "read", "where", "side")]
    located = batch.pointers[torch.isin(batch.tasks, torch.tensor(lookups))].any(-1)
    assert located.float().mean() > 0.95  # a cell belongs to one object, so a small one may own none
    assert not batch.pointers[batch.tasks == TASKS.index("texture")].any()


def test_batches_made_ahead_come_in_order():
    plan = [([0, 1], False), ([2, 3], True), ([4], False)]
    for (seeds, simple), batch in zip(plan, batches_ahead(plan, ahead=1), strict=True):
        for here, there in zip(make_batch(seeds, simple=simple), batch, strict=True):
            assert torch.equal(here, there)


def test_loss_falls():
    config = dataclasses.replace(TINY, tower_steps=12, warmup=1)
    learner = Learner(config, seed=0)
    batch = make_batch([0, 1])
    losses = [learner.step(0, batch)["labels"] for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    lines = []

    class StopRunError(Exception):
        pass

    def stop(line):
        raise StopRunError(line)

    whole = train(tmp_path / "whole", config=TINY, log=lines.append)
    with pytest.raises(StopRunError):  # the first line comes after the checkpoint of step 3
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
    assert [TINY.phase(step) for step in range(TINY.steps)] == ["tower"] * 2 + ["pointer"] * 2 + ["joint"] * 2
    config = TrainConfig()
    rates = [config.rates(step) for step in range(config.steps)]
    assert all(0 <= rate <= 1 for pair in rates for rate in pair)
    assert rates[-1][1] < 0.05
