"""Training of the reference model from nothing, in three phases, on a CPU.

1. *tower*: the vision tower alone learns to say, for each visual token, what is there (a dense loss).
2. *pointer*: the tower rests; the decoder learns to answer, helped by a pointer loss that shows it where to
   look. Each task is shown at a layer of its own, spread over the middle of the decoder, so that the image
   is needed there, as in large models. Half of the scenes are simple.
3. *joint*: everything learns from the answers, without pointers; the dense loss stays on with a small weight.

The schedule counts steps, every random choice follows from the seed, and a checkpoint holds all there is to
go on from: an interrupted run that resumes ends with the same bits (on the same machine and thread count).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from .batches import LABEL_SIZES, Batch, batches_ahead, make_batch
from .evaluate import accuracy
from .fast import FastForward
from .model import END, TOKEN_ID, export, make_config, make_model
from .scenes import MAX_QUESTIONS, SPLITS, TASKS, split_seed

TASK_WEIGHT = {
    "color": 0.6,
    "shape": 1.5,
    "count": 2.5,
    "exist": 1.0,
    "where": 0.5,
    "side": 1.0,
    "height": 1.0,
    "read": 1.5,
    "texture": 0.3,
}
"""Weight of a question in the loss: the tasks that are learnt late count more."""
POINTER_DEPTH = {
    "color": 0.3,
    "where": 0.3,
    "side": 0.4,
    "height": 0.4,
    "shape": 0.5,
    "exist": 0.5,
    "read": 0.6,
    "count": 0.6,
}
"""Decoder layer, as a share of all layers, at which the pointer loss shows a task where to look."""
LABEL_WEIGHT = (1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 0.3)
CHECKPOINT = "checkpoint.safetensors"
MAX_STEPS = 100_000
"""Runs with different seeds see different scenes, as long as no run is longer than this."""


@dataclass(frozen=True)
class TrainConfig:
    """What a training run does; the defaults made the weights in the package.

    Attributes
    ----------
    tower_steps, pointer_steps, joint_steps : int
        Optimiser steps of the three phases.
    batch_size : int
        Images per step; each comes with up to 24 questions.
    layers, hidden, tower_depth, tower_hidden : int
        Sizes, see `make_config`.
    matrix_rate, other_rate : float
        Peak learning rates of Muon (matrices) and AdamW (all else).
    warmup : int
        Steps over which the learning rate rises at the start of a phase.
    pointer_weight, label_weight : float
        Weight of the pointer loss, and of the dense loss in the joint phase, relative to the answers' loss.
    checkpoint_every : int
        Steps between checkpoints; the validation accuracy is logged then, too.
    validation_images : int
        Scenes of the validation split to measure it on.
    """

    tower_steps: int = 1600
    pointer_steps: int = 800
    joint_steps: int = 1000
    batch_size: int = 16
    layers: int = 10
    hidden: int = 128
    tower_depth: int = 4
    tower_hidden: int = 96
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    warmup: int = 60
    pointer_weight: float = 0.3
    label_weight: float = 0.25
    checkpoint_every: int = 200
    validation_images: int = 128

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.tower_steps + self.pointer_steps + self.joint_steps

    def phase(self, step: int) -> str:
        """Phase of a step."""
        if step < self.tower_steps:
            return "tower"
        return "pointer" if step < self.tower_steps + self.pointer_steps else "joint"

    def rates(self, step: int) -> tuple[float, float]:
        """Learning rates of tower and decoder at a step, as shares of the peak."""
        phase = self.phase(step)
        start, length = {
            "tower": (0, self.tower_steps),
            "pointer": (self.tower_steps, self.pointer_steps),
            "joint": (self.tower_steps + self.pointer_steps, self.joint_steps),
        }[phase]
        done = (step - start) / length
        warm = min(1.0, (step - start + 1) / self.warmup)
        if phase == "tower":
            return warm * (1 - 0.9 * done), 0.0
        if phase == "pointer":
            return 0.0, warm
        decay = 0.02 + 0.98 * (1 - done)
        return 0.25 * warm * decay, 0.6 * decay


class Learner:
    """The model in training: parameters, optimisers and losses."""

    def __init__(self, config: TrainConfig, seed: int) -> None:
        self.config = config
        sizes = {name: getattr(config, name) for name in ("layers", "hidden", "tower_depth", "tower_hidden")}
        self.model: Qwen2_5_VLForConditionalGeneration = make_model(make_config(**sizes), seed=seed)
        self.fast = FastForward(self.model, MAX_QUESTIONS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Reads the dense labels; not part of the model.
            self.probe = nn.Linear(config.hidden, sum(LABEL_SIZES))
        self.tower = dict(self.model.model.visual.named_parameters(prefix="tower"))
        self.tower |= dict(self.probe.named_parameters(prefix="probe"))
        self.decoder = dict(self.model.model.language_model.named_parameters(prefix="decoder"))
        matrices, others = [], []
        for part, parameters in (("tower", self.tower), ("decoder", self.decoder)):
            inner = {name for name, p in parameters.items() if p.ndim == 2 and not _is_outer(name)}
            matrices.append({"part": part, "params": [parameters[name] for name in parameters if name in inner]})
            others.append({"part": part, "params": [p for name, p in parameters.items() if name not in inner]})
        self.optimisers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] = (
            torch.optim.Muon(matrices, weight_decay=0.01),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
        )

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that is learnt, by name."""
        return self.tower | self.decoder

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns the losses."""
        phase = self.config.phase(step)
        losses: dict[str, Tensor] = {}
        with torch.set_grad_enabled(phase != "pointer"):
            visual = self.fast.see(batch.images)
        loss = torch.zeros(())
        if phase != "pointer":
            losses["labels"] = self._label_loss(visual, batch.labels)
            loss = loss + losses["labels"] * (1.0 if phase == "tower" else self.config.label_weight)
        if phase != "tower":
            pointers = self._pointers(batch) if phase == "pointer" else None
            logits, end_logits, pointer_loss = self.fast.read(
                visual, batch.questions, batch.answers[:, 0], pointers=pointers
            )
            losses["answers"] = _answer_loss(logits, batch)
            ends = torch.full((len(end_logits),), TOKEN_ID[END])
            loss = loss + losses["answers"] + 0.05 * F.cross_entropy(end_logits, ends)
            if pointers is not None:
                losses["pointers"] = pointer_loss
                loss = loss + self.config.pointer_weight * pointer_loss
        loss.backward()
        for part in (self.tower, self.decoder):
            nn.utils.clip_grad_norm_(part.values(), 1.0)
        rates = dict(zip(("tower", "decoder"), self.config.rates(step), strict=True))
        peaks = (self.config.matrix_rate, self.config.other_rate)
        for optimiser, peak in zip(self.optimisers, peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * rates[group["part"]]
            optimiser.step()
            optimiser.zero_grad()
        return {name: value.item() for name, value in losses.items()}

    def _label_loss(self, visual: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of the dense labels; empty cells count little, but for centre and texture."""
        there = (labels[:, 0] > 0).float()
        boxed = (labels[:, 2] > 0).float()
        everywhere = torch.ones_like(there)
        weights = (there + 0.1, there + 0.1, boxed + 0.02, there + 0.1, there + 0.1, everywhere, everywhere)
        total = torch.zeros(())
        answers = self.probe(visual).split(LABEL_SIZES, -1)
        parts = zip(answers, labels.unbind(1), weights, LABEL_WEIGHT, strict=True)
        for answer, label, weight, share in parts:
            each = F.cross_entropy(answer.transpose(1, 2), label, reduction="none")
            total = total + share * (each * weight).sum() / weight.sum()
        return total

    def _pointers(self, batch: Batch) -> dict[int, Tensor]:
        """The cells to look at, by decoder layer: those of the tasks that are shown at this layer."""
        layer_of = {task: round(depth * self.config.layers) for task, depth in POINTER_DEPTH.items()}
        found: dict[int, Tensor] = {}
        for layer in sorted(set(layer_of.values())):
            here = torch.tensor([layer_of.get(task) == layer for task in TASKS])
            asked = here[batch.tasks] & (batch.tasks >= 0)
            found[layer] = batch.pointers & asked[..., None, None]
        return found

    def save(self, path: Path, step: int, seed: int) -> None:
        """Write a checkpoint: tensors, and what else there is as JSON in the header."""
        tensors = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for optimiser in self.optimisers:
            for name, p in self.parameters.items():
                for key, value in optimiser.state.get(p, {}).items():
                    tensors[f"{key}/{name}"] = value
        state = {"step": step, "seed": seed, "config": dataclasses.asdict(self.config)}
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, {"state": json.dumps(state)})
        os.replace(partial, path)

    def load(self, path: Path, seed: int) -> int:
        """Take over a checkpoint and return the number of steps that were done."""
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            wanted = {"seed": seed, "config": dataclasses.asdict(self.config)}
            if {key: state[key] for key in wanted} != wanted:
                raise ValueError(f"{path} is from another run: {state}; this one is {wanted}")
            parameters = self.parameters
            for key in file.keys():  # noqa: SIM118 - not a dict
                kind, name = key.split("/")
                p, value = parameters[name], file.get_tensor(key)
                if kind == "parameter":
                    p.data.copy_(value)
                else:
                    self.optimisers[kind != "momentum_buffer"].state[p][kind] = value
        return int(state["step"])


def _is_outer(name: str) -> bool:
    """Embeddings and classifiers are matrices that Muon is not meant for."""
    return "embed" in name or "probe" in name


def _answer_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted cross entropy of the answers."""
    weights = torch.tensor([*(TASK_WEIGHT[task] for task in TASKS), 0.0])
    weight = weights[batch.tasks]  # -1, no question, takes the last
    each = F.cross_entropy(logits.transpose(1, 2), batch.answers, ignore_index=-100, reduction="none")
    return (each * weight).sum() / weight.sum()


def train(
    out: Path,
    *,
    seed: int = 0,
    config: TrainConfig | None = None,
    resume: bool = False,
    log: Callable[[str], None] = print,
) -> Path:
    """Train the reference model.

    Parameters
    ----------
    out : Path
        Folder for the checkpoint, and in the end for the model, in ``out / "model"``.
    seed : int
        Decides the first weights and the scenes.
    config : TrainConfig, optional
    resume : bool
        Go on from the checkpoint in `out`.
    log : callable
        Gets a line now and then.

    Returns
    -------
    Path
        The folder of the model.
    """
    config = config or TrainConfig()
    out.mkdir(parents=True, exist_ok=True)
    learner = Learner(config, seed)
    done = learner.load(out / CHECKPOINT, seed) if resume else 0
    validation = make_batch([split_seed("validation", index) for index in range(config.validation_images)])
    plan = _plan(config, seed)[done:]
    began = time.monotonic()
    sums: dict[str, list[float]] = {}
    for step, batch in enumerate(batches_ahead(plan), done):
        for name, loss in learner.step(step, batch).items():
            sums.setdefault(name, []).append(loss)
        now = step + 1
        if now % 50 == 0:
            means = " ".join(f"{name} {math.fsum(found) / len(found):.3f}" for name, found in sums.items())
            pace = (time.monotonic() - began) / (now - done)
            log(f"step {now}/{config.steps} {config.phase(step)} {means} | {pace:.2f} s/step")
            sums.clear()
        if now % config.checkpoint_every == 0 or now == config.steps:
            learner.save(out / CHECKPOINT, now, seed)
            log(_validation_line(learner, validation))
    return export(learner.model, out / "model")


def _plan(config: TrainConfig, seed: int) -> list[tuple[list[int], bool]]:
    """Scene seeds of each step, and whether its scenes are simple."""
    size = config.batch_size
    if config.steps > MAX_STEPS or (seed + 1) * MAX_STEPS * size > SPLITS["train"][1]:
        raise ValueError(f"{config.steps} steps of {size} images with seed {seed} leave the training split")
    first = seed * MAX_STEPS * size
    return [
        (
            [split_seed("train", first + step * size + i) for i in range(size)],
            config.phase(step) == "pointer" and step % 2 == 0,
        )
        for step in range(config.steps)
    ]


def _validation_line(learner: Learner, batch: Batch) -> str:
    """Accuracy on validation scenes, and the mean over tasks when the visual tokens leave at each layer."""
    with torch.no_grad():
        visual = torch.cat([learner.fast.see(images) for images in batch.images.split(32)])
        seen = learner.probe(visual).split(LABEL_SIZES, -1)
    there = batch.labels[:, 0] > 0
    labels = [
        (answer.argmax(-1) == label)[there if number < 5 else there | ~there].float().mean().item()
        for number, (answer, label) in enumerate(zip(seen, batch.labels.unbind(1), strict=True))
    ]
    tasks = accuracy(learner.fast, batch, visual)
    layers = range(learner.config.layers + 1)
    few, some = Batch(*(tensor[:32] for tensor in batch)), visual[:32]
    profile = [accuracy(learner.fast, few, some, learner.fast.leave_at(layer)) for layer in layers]
    means = [math.fsum(found.values()) / len(found) for found in profile]
    return "\n".join(
        (
            "  labels " + " ".join(f"{value:.3f}" for value in labels),
            "  tasks " + " ".join(f"{task} {value:.3f}" for task, value in tasks.items()),
            "  leaving at layer " + " ".join(f"{layer}: {value:.2f}" for layer, value in enumerate(means)),
        )
    )
