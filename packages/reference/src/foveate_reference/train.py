"""Training of a reference model from nothing, in four phases; on a CPU, if need be.

1. *tower*: the vision tower alone learns to say, for each visual token, what is there (a dense loss). A CLS token learns
   to say what is anywhere in its tile, so that it attends to objects, as that of a contrastively trained tower does.
2. *scenes*: the tower rests; the decoder learns to answer about scenes, helped by a pointer loss that shows it where
   to look. Each task is shown at a layer of its own, spread over the middle of the decoder, so that the image is needed
   there, as in large models. Half of the scenes are simple. With all kinds of exhibits from the start nothing was
   learnt in 1 300 steps; with scenes alone, 200 are enough to begin.
3. *pointer*: the same with all kinds of exhibits.
4. *joint*: everything learns from the answers, without pointers; the dense loss stays on with a small weight.

The schedule counts steps, every random choice follows from the seed, and a checkpoint holds all there is to
go on from: an interrupted run that resumes ends with the same bits (on the same machine and thread count).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checkpoints
from .batches import IGNORED, LABEL_SIZES, Batch, Recipe, batches_ahead
from .evaluate import accuracy, exhibits, layer_profile
from .fast import FastForward
from .model import END, TOKEN_ID, Model, export, make_config, make_model
from .muon import Muon
from .scenes import SPLITS, split_seed
from .vocabulary import TASKS

TASK_WEIGHT = dict.fromkeys(TASKS, 1.0) | {
    "color": 0.6,
    "where": 0.5,
    "cell": 0.7,
    "texture": 0.3,
    "shape": 1.5,
    "count": 2.5,
    "read": 1.5,
    "word": 1.5,
    "odd": 1.5,
    "chart": 2.0,
}
"""Weight of a question in the loss: the tasks that are learnt late count more."""
POINTER_DEPTH = {
    **dict.fromkeys(("color", "where", "cell"), 0.3),
    **dict.fromkeys(("side", "height", "absent", "pair", "move"), 0.4),
    **dict.fromkeys(("shape", "exist", "odd", "chart", "appear"), 0.5),
    **dict.fromkeys(("read", "count", "digit", "word", "table", "document"), 0.6),
}
"""Decoder layer, as a share of all layers, at which the pointer loss shows a task where to look."""
MENUS = {
    "tower": ("mixed", "mixed", "document", "mixed", "document", "mixed", "mixed", "document"),
    "scenes": ("scene",),
    "pointer": ("mixed", "document", "mixed", "pair", "mixed", "video", "mixed", "mixed"),
    "joint": ("mixed", "document", "mixed", "pair", "mixed", "video", "mixed", "mixed"),
}
"""What the steps of a phase show, in turn."""
SHARES = {
    "scene": {"scene": 1.0},
    "mixed": {"scene": 12 / 16, "chart": 2 / 16, "table": 2 / 16},
    "document": {"document": 4 / 16},
    "pair": {"pair": 8 / 16},
    "video": {"video": 4 / 16},
}
"""Exhibits of a step, as shares of the batch size: about the same number of tokens in each."""
LABEL_WEIGHT = (1.0, 1.0, 2.0, 0.5, 0.5, 0.5, 1.0, 0.3)
SUMMARY_SIZES = LABEL_SIZES[:3]
"""What a CLS token is asked for: the kinds, colours and texts in its tile."""
CHECKPOINT = "checkpoint.safetensors"
MAX_STEPS = 100_000
"""Runs with different seeds see different scenes, as long as no run is longer than this."""


@dataclass(frozen=True)
class TrainConfig:
    """What a training run does; `RECIPES` has those of the weights in the package.

    Attributes
    ----------
    architecture : str
        A word of `ARCHITECTURES`.
    tower_steps, scenes_steps, pointer_steps, joint_steps : int
        Optimiser steps of the four phases.
    batch_size : int
        Images of 160 x 160 px per step, or about as many tokens in other exhibits.
    layers, hidden, tower_depth, tower_hidden : int
        Sizes, see `make_config`; a width of the tower of 0 stands for the architecture's own.
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

    architecture: str = "qwen2_5_vl"
    tower_steps: int = 2600
    scenes_steps: int = 700
    pointer_steps: int = 500
    joint_steps: int = 2400
    batch_size: int = 16
    layers: int = 10
    hidden: int = 128
    tower_depth: int = 4
    tower_hidden: int = 0
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    warmup: int = 60
    pointer_weight: float = 0.3
    label_weight: float = 0.25
    checkpoint_every: int = 300
    validation_images: int = 48

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return sum(self._lengths.values())

    @property
    def _lengths(self) -> dict[str, int]:
        """Steps of each phase, in order."""
        return {phase: getattr(self, f"{phase}_steps") for phase in MENUS}

    def phase(self, step: int) -> str:
        """Phase of a step."""
        return self._where(step)[0]

    def _where(self, step: int) -> tuple[str, int]:
        """Phase of a step, and steps since the phase began."""
        for phase, length in self._lengths.items():
            if step < length:
                return phase, step
            step -= length
        raise ValueError("the run is over")

    def rates(self, step: int) -> tuple[float, float]:
        """Learning rates of tower and decoder at a step, as shares of the peak."""
        phase, since = self._where(step)
        done = since / self._lengths[phase]
        warm = min(1.0, (since + 1) / self.warmup)
        if phase == "tower":
            return warm * (1 - 0.9 * done), 0.0
        if phase != "joint":
            return 0.0, 0.5 * warm
        decay = 0.02 + 0.98 * (1 - done)
        return 0.4 * warm * decay, 0.5 * decay


RECIPES = {
    "qwen2_5_vl": TrainConfig(),
    "llava": TrainConfig(architecture="llava", tower_steps=7000, joint_steps=7200),
    "large": TrainConfig(
        tower_steps=6000,
        scenes_steps=2000,
        pointer_steps=2000,
        joint_steps=12000,
        batch_size=64,
        layers=16,
        hidden=512,
        tower_depth=8,
        tower_hidden=384,
        matrix_rate=0.01,
        other_rate=1e-3,
    ),
}
"""Recipes of the weights in the package, by architecture (the card says where the real runs differed); and one for a GPU:
*large*, 47 million parameters, which nobody has run yet."""


class Learner:
    """The model in training: parameters, optimisers and losses."""

    def __init__(self, config: TrainConfig, seed: int, device: str = "cpu") -> None:
        self.config = config
        self.device = device
        sizes = {name: getattr(config, name) for name in ("layers", "hidden", "tower_depth")}
        made = make_config(config.architecture, **sizes, tower_hidden=config.tower_hidden or None)
        self.model: Model = make_model(made, seed=seed)
        self.model.to(device)  # type: ignore[arg-type] # the stubs of transformers want a class here
        self.fast = FastForward(self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Reads the dense labels; not part of the model.
            self.probe = nn.Linear(config.hidden, sum(LABEL_SIZES)).to(device)
            # Reads the CLS token, where there is one; not part of the model either.
            width = self.fast.tower.summary_width
            self.summary_probe = None if width is None else nn.Linear(width, sum(SUMMARY_SIZES)).to(device)
        decoder = {id(p) for p in self.model.model.language_model.parameters()}
        named = list(self.model.model.named_parameters())
        self.tower = {f"tower.{name}": p for name, p in named if id(p) not in decoder}
        self.tower |= dict(self.probe.named_parameters(prefix="probe"))
        if self.summary_probe is not None:
            self.tower |= dict(self.summary_probe.named_parameters(prefix="summary_probe"))
        self.decoder = {f"decoder.{name}": p for name, p in named if id(p) in decoder}
        matrices, others = [], []
        for part, parameters in (("tower", self.tower), ("decoder", self.decoder)):
            inner = {name for name, p in parameters.items() if p.ndim == 2 and not _is_outer(name)}
            matrices.append({"part": part, "params": [parameters[name] for name in parameters if name in inner]})
            others.append({"part": part, "params": [p for name, p in parameters.items() if name not in inner]})
        self.optimisers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] = (
            Muon(matrices, weight_decay=0.01),
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
        batch = Batch(*(tensor.to(self.device) for tensor in batch))
        layout = self.fast.layout(tuple(batch.images.shape))
        guided = phase in ("scenes", "pointer")
        with torch.set_grad_enabled(not guided):
            visual, summary = self.fast.look(batch.images)
        loss = visual.new_zeros(())
        if not guided:
            labels = self.fast.arrange(batch.labels)
            losses["labels"] = self._label_loss(visual, labels)
            if summary is not None:
                losses["summary"] = self._summary_loss(summary, labels)
            loss = sum(losses.values(), loss) * (1.0 if phase == "tower" else self.config.label_weight)
        if phase != "tower":
            pointers = self._pointers(batch) if guided else None
            first = batch.answers[:, 0]
            logits, end_logits, pointer_loss = self.fast.read(
                visual, batch.questions, first.clamp(min=0), layout, pointers=pointers
            )
            losses["answers"] = _answer_loss(logits, batch)
            ends = torch.where(first == IGNORED, IGNORED, TOKEN_ID[END])
            loss = loss + losses["answers"] + 0.05 * F.cross_entropy(end_logits, ends, reduction="sum") / len(ends)
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
        written, linked = ((labels[:, number] > 0).float() for number in (2, 3))
        everywhere = torch.ones_like(there)
        weights = (*(there + 0.1,) * 2, written + 0.02, linked + 0.02, *(there + 0.1,) * 2, everywhere, everywhere)
        total = visual.new_zeros(())
        answers = self.probe(visual).split(LABEL_SIZES, -1)
        parts = zip(answers, labels.unbind(1), weights, LABEL_WEIGHT, strict=True)
        for answer, label, weight, share in parts:
            each = F.cross_entropy(answer.transpose(1, 2), label, reduction="none", ignore_index=IGNORED)
            total = total + share * (each * weight).sum() / weight.sum()
        return total

    def _summary_loss(self, summary: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of what is in each tile, every kind, colour and text that is there being equally right."""
        assert self.summary_probe is not None
        total = summary.new_zeros(())
        answers = self.summary_probe(summary).split(SUMMARY_SIZES, -1)
        tiled = labels.unflatten(-1, (summary.shape[1], -1))  # (B, 8, tiles, cells)
        for answer, label in zip(answers, tiled.unbind(1)):
            present = torch.zeros_like(answer).scatter_(-1, label.clamp(min=0), 1.0)
            present[..., 0] = 0.0  # the class of cells with nothing, and of those without a label
            there = present.sum(-1, keepdim=True)
            each = -(present / there.clamp(min=1) * answer.log_softmax(-1)).sum(-1)
            total = total + each.sum() / (there > 0).sum().clamp(min=1)
        return total

    def _pointers(self, batch: Batch) -> dict[int, Tensor]:
        """The cells to look at, by decoder layer: those of the tasks that are shown at this layer."""
        layer_of = {task: round(depth * self.config.layers) for task, depth in POINTER_DEPTH.items()}
        found: dict[int, Tensor] = {}
        for layer in sorted(set(layer_of.values())):
            here = torch.tensor([layer_of.get(task) == layer for task in TASKS], device=self.device)
            asked = here[batch.tasks] & (batch.tasks >= 0)
            found[layer] = self.fast.arrange(batch.pointers) & asked[..., None, None]
        return found

    def save(self, path: Path, step: int, seed: int) -> None:
        """Write a checkpoint: tensors, and what else there is as JSON in the header."""
        state = {"step": step, "seed": seed, "config": dataclasses.asdict(self.config)}
        checkpoints.save(path, self.parameters, self.optimisers, state)

    def load(self, path: Path, seed: int) -> int:
        """Take over a checkpoint and return the number of steps that were done."""
        wanted = {"seed": seed, "config": dataclasses.asdict(self.config)}
        muon, adam = self.optimisers
        state = checkpoints.load(
            path, self.parameters, lambda kind: muon if kind == "momentum_buffer" else adam, wanted
        )
        return int(state["step"])


def _is_outer(name: str) -> bool:
    """Embeddings and classifiers are matrices that Muon is not meant for."""
    return "embed" in name or "probe" in name


def _answer_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted cross entropy of the answers."""
    weights = torch.tensor([*(TASK_WEIGHT[task] for task in TASKS), 0.0], device=logits.device)
    weight = weights[batch.tasks]  # -1, no question, takes the last
    each = F.cross_entropy(logits.transpose(1, 2), batch.answers, ignore_index=IGNORED, reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1.0)


def train(
    out: Path,
    *,
    seed: int = 0,
    config: TrainConfig | None = None,
    start: Callable[[Model], None] | None = None,
    resume: bool = False,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> Path:
    """Train a reference model.

    Parameters
    ----------
    out : Path
        Folder for the checkpoint, and in the end for the model, in ``out / "model"``.
    seed : int
        Decides the first weights and the scenes.
    config : TrainConfig, optional
    start : callable, optional
        Gives the model, whose weights are random, those to begin with.
    resume : bool
        Go on from the checkpoint in `out`.
    device : str
        Where to train, ``"cuda"`` for one.
    log : callable
        Gets a line now and then.

    Returns
    -------
    Path
        The folder of the model.
    """
    config = config or TrainConfig()
    out.mkdir(parents=True, exist_ok=True)
    learner = Learner(config, seed, device)
    if start is not None and not resume:
        start(learner.model)
    done = learner.load(out / CHECKPOINT, seed) if resume else 0
    validation = exhibits("validation", config.validation_images)
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
            log(_validation_line(learner, validation, config.phase(step)))
    return export(learner.model, out / "model")


def _plan(config: TrainConfig, seed: int) -> list[list[Recipe]]:
    """The exhibits of each step."""
    size = config.batch_size
    if config.steps > MAX_STEPS or (seed + 1) * MAX_STEPS * size > SPLITS["train"][1]:
        raise ValueError(f"{config.steps} steps of {size} images with seed {seed} leave the training split")
    plan = []
    for step in range(config.steps):
        phase = config.phase(step)
        shares = SHARES[MENUS[phase][step % len(MENUS[phase])]]
        kinds = [kind for kind, share in shares.items() for _ in range(max(1, round(size * share)))]
        first = (seed * MAX_STEPS + step) * size
        simple = phase in ("scenes", "pointer") and step % 16 < 8
        plan.append([Recipe(kind, split_seed("train", first + i), simple) for i, kind in enumerate(kinds)])
    return plan


def _validation_line(learner: Learner, batches: list[Batch], phase: str) -> str:
    """Accuracy on validation exhibits, and the mean over tasks when the visual tokens leave at each layer."""
    right: list[list[Tensor]] = [[] for _ in LABEL_SIZES]
    with torch.no_grad():
        for found in batches:
            batch = Batch(*(tensor.to(learner.device) for tensor in found))
            seen = learner.probe(learner.fast.see(batch.images)).split(LABEL_SIZES, -1)
            labels = learner.fast.arrange(batch.labels).unbind(1)
            there = labels[0] > 0
            for number, (answer, label) in enumerate(zip(seen, labels, strict=True)):
                counted = label >= 0 if number > 5 else there & (label >= (1 if number in (2, 3) else 0))
                right[number].append((answer.argmax(-1) == label)[counted].float())
    dense = "  labels " + " ".join(f"{torch.cat(hits).mean().item():.3f}" for hits in right)
    if phase == "tower":
        return dense
    tasks = accuracy(learner.fast, batches)
    profile = layer_profile(learner.fast, batches[:: max(1, len(batches) // 8)])
    means = [sum(values) / len(values) for found in profile if (values := [v for v in found.values() if v == v])]
    return "\n".join(
        (
            dense,
            "  tasks " + " ".join(f"{task} {value:.2f}" for task, value in tasks.items()),
            "  leaving at layer " + " ".join(f"{layer}: {value:.2f}" for layer, value in enumerate(means)),
        )
    )
