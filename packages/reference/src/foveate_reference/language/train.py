"""Training of `smollm2`: its tower, then the connector alone, then the language model's answers; on a CPU, if need be.

1. *tower*: as of every reference model, a dense loss (`foveate_reference.train`), in rounds, each on new pictures from the
   weights of the last one. The first begins as the tower of the reference LLaVA, whose four blocks stand among eight that
   change nothing yet, so it sees from the first step on (`grow`).
2. *align*: the connector learns to say, in the language model's own word embeddings, what is in a cell (`align`).
3. *answers*: the connector, and low-rank changes of all matrices of the language model (LoRA), learn to answer packed
   questions (`packing`); simple scenes first. At the start a small loss shows one layer where to look.

A run can be interrupted at any minute: it goes on from its last checkpoint, and every random choice follows from the seed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from foveate_reference import checkpoints
from foveate_reference.batches import IGNORED, Batch, Recipe, batches_ahead
from foveate_reference.exhibits import make_exhibit
from foveate_reference.fast import FastForward
from foveate_reference.scenes import split_seed
from foveate_reference.train import CHECKPOINT, MAX_STEPS, TASK_WEIGHT, TrainConfig
from foveate_reference.vocabulary import TASKS

from .align import WordTargets
from .base import base_folder
from .model import (
    ADAPTER,
    TOWER_DEPTH,
    adapter_file,
    make_smollm2,
    make_smollm2_processor,
    read_adapter,
    save_adapter,
    take_parts,
)
from .packing import Packed, Packer, answered, embed, read_images
from .tower import take_tower, train_towers

MENU = ("mixed", "scene", "document", "mixed", "pair", "scene", "mixed", "video")
"""What the steps show in turn, after the simple scenes."""
SHARES = {
    "simple": {"scene": 1.0},
    "scene": {"scene": 1.0},
    "mixed": {"scene": 0.5, "chart": 0.5, "table": 0.5},
    "document": {"document": 0.5},
    "pair": {"pair": 1.5},
    "video": {"video": 1.0},
}
"""Exhibits of a step, as shares of the batch size: about the same number of tokens in each."""


@dataclass(frozen=True)
class SmolConfig:
    """What a training run of `smollm2` does.

    Attributes
    ----------
    start : str
        An adapter, as file or folder, to go on from: only the third stage is run, none of it with simple scenes alone.
    tower_rounds : int
        Rounds of the first stage.
    tower_steps, align_steps, answer_steps : int
        Optimiser steps of such a round, and of the other two stages.
    batch_size : int
        Scenes of a step of the third stage; of the other two 16.
    questions : int
        Questions of an exhibit at most.
    simple : float
        Share of the third stage that shows simple scenes alone.
    rank : int
        Of the low-rank changes; their scale is 2.
    align_rate, connector_rate, rate : float
        Peak learning rates of the connector alone, of the connector later, and of the low-rank changes.
    warmup : int
        Steps over which the rates of the third stage rise.
    pointer_weight, pointer_depth, pointer_share : float
        Weight of the loss that shows where to look, the layer it acts on as a share of all, and the share of the stage after
        which it ends.
    checkpoint_every, validation_images : int
    """

    start: str = ""
    tower_rounds: int = 2
    tower_steps: int = 200
    align_steps: int = 400
    answer_steps: int = 1800
    batch_size: int = 2
    questions: int = 24
    simple: float = 0.15
    rank: int = 16
    align_rate: float = 1e-3
    connector_rate: float = 5e-4
    rate: float = 4e-4
    warmup: int = 50
    pointer_weight: float = 0.2
    pointer_depth: float = 0.4
    pointer_share: float = 0.4
    checkpoint_every: int = 50
    validation_images: int = 12

    def tower(self, width: int) -> TrainConfig:
        """The first stage, in the words of the other reference models; its decoder, of this width, is never run."""
        none = dict.fromkeys(("scenes_steps", "pointer_steps", "joint_steps"), 0)
        return TrainConfig(
            "llava",
            tower_steps=self.tower_steps,
            layers=1,
            hidden=width,
            tower_depth=TOWER_DEPTH,
            matrix_rate=0.01,
            other_rate=1e-3,
            validation_images=self.validation_images,
            **none,
        )


class SmolLearner:
    """The model in training: what is learnt, its optimiser, and the losses of stages 2 and 3."""

    def __init__(self, config: SmolConfig, seed: int, tower: Path | None, base: Path, device: str = "cpu") -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise RuntimeError("training smollm2 needs peft: pip install 'peft>=0.18'") from None

        self.config, self.device = config, device
        self.model: LlavaForConditionalGeneration = make_smollm2(base)
        processor = make_smollm2_processor(base)
        self.packer = Packer(processor.tokenizer, TASK_WEIGHT)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if tower is not None:
                take_tower(tower, self.model)
            self.model.requires_grad_(False)
            language = self.model.model.language_model
            inject_adapter_in_model(
                LoraConfig(r=config.rank, lora_alpha=int(SCALE * config.rank), target_modules=LINEAR),
                language,
                adapter_name="answers",
            )
        self.words = WordTargets(processor.tokenizer, language.embed_tokens.weight.detach()).to(device)
        self.model.to(device)  # type: ignore[arg-type] # the stubs of transformers want a class here
        self.connector = self.model.model.multi_modal_projector.requires_grad_(True)
        self.changes = {name: p for name, p in language.named_parameters() if "lora_" in name}
        if config.start:
            self._go_on_from(adapter_file(config.start))
        self.fast = FastForward(self.model)
        self._caught: dict[str, Tensor] = {}
        self.shown = language.layers[int(config.pointer_depth * len(language.layers))].self_attn
        for name in ("q_proj", "k_proj"):
            getattr(self.shown, name).register_forward_hook(self._catch(name))
        self.optimiser = torch.optim.AdamW(
            [{"params": list(self.changes.values())}, {"params": list(self.connector.parameters())}],
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that stages 2 and 3 learn, by name."""
        return self.changes | dict(self.connector.named_parameters(prefix="connector"))

    def _go_on_from(self, file: Path) -> None:
        """Take over what was trained before."""
        found = read_adapter(self.model, file)
        rank = next((min(value.shape) for name, value in found.items() if name.startswith("lora.")), 0)
        if rank != self.config.rank:
            raise ValueError(
                f"{file} has low-rank changes of rank {rank}, and this run of {self.config.rank}: say rank={rank}"
            )
        take_parts(self.model, found)
        for name, p in self.changes.items():
            matrix, half = name.split(".lora_")
            value = found[f"lora.{matrix}.{'down' if half.startswith('A') else 'up'}"]
            p.data.copy_(value if half.startswith("A") else value / SCALE)

    def _catch(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, out: Tensor) -> None:
            self._caught[name] = out

        return hook

    def align(self, step: int, batch: Batch) -> dict[str, float]:
        """One step of the second stage; returns the loss and the share of right words by label."""
        with torch.no_grad():
            seen = read_images(self.model, batch.images.to(self.device))
        cells = self.fast.arrange(batch.labels.to(self.device))
        loss, right = self.words(self.connector(seen), cells)
        rate = self.config.align_rate * max(0.05, 1 - step / self.config.align_steps)
        self._update(loss, (0.0, rate))
        return {"loss": loss.item(), **right}

    def answer(self, step: int, packed: Packed) -> dict[str, float]:
        """One step of the third stage; returns the losses."""
        packed = Packed(*(tensor.to(self.device) for tensor in packed))
        hidden, pointers = self._read(packed)
        there = packed.labels != IGNORED
        each = F.cross_entropy(self.model.lm_head(hidden[there]), packed.labels[there], reduction="none")
        weight = packed.weights[there]
        losses = {"answers": (each * weight).sum() / weight.sum()}
        total = losses["answers"]
        if step < self.config.pointer_share * self.config.answer_steps and self.config.pointer_weight:
            losses["pointers"] = pointers
            total = total + self.config.pointer_weight * pointers
        done = step / self.config.answer_steps
        share = min(1.0, (step + 1) / self.config.warmup) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        self._update(total, (self.config.rate * share, self.config.connector_rate * share))
        return {name: loss.item() for name, loss in losses.items()}

    def _update(self, loss: Tensor, rates: tuple[float, float]) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _read(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, width) after the language model, and the loss of where to look."""
        with torch.no_grad():
            seen = read_images(self.model, packed.images)
        embedded, bias = embed(self.model, packed, self.connector(seen))
        states = self.model.model.language_model(
            inputs_embeds=embedded, attention_mask=bias, position_ids=packed.positions, use_cache=False
        ).last_hidden_state
        return states, self._pointer_loss(packed, embedded, packed.ids == self.model.config.image_token_id)

    def _pointer_loss(self, packed: Packed, embedded: Tensor, where: Tensor) -> Tensor:
        """Mean negative log of the attention that a head's last prompt tokens pay to what they are asked about.

        Two heads of one layer are shown; only their attention among visual tokens counts.
        """
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        language = self.model.model.language_model
        attention = self.shown
        q, k = (
            self._caught.pop(name).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for name in ("q_proj", "k_proj")
        )
        q, k = apply_rotary_pos_emb(q, k, *language.rotary_emb(embedded, packed.positions))
        asking = packed.asking[:, None, :, None].expand(-1, 2, -1, q.shape[-1])
        asked = q[:, :2].gather(2, asking)
        columns = where[0].nonzero()[:, 0]  # the same in all rows: the images come first
        scores = asked @ k[:, :1, columns].transpose(2, 3) * q.shape[-1] ** -0.5  # (B, 2, Q, visual)
        target = packed.pointers[:, None]
        counted = packed.pointers.any(-1)
        hit = scores.log_softmax(-1).masked_fill(~target, -1e9).logsumexp(-1)
        loss: Tensor = -hit.mean(1)[counted].mean() if counted.any() else scores.new_zeros(())
        return loss

    @torch.no_grad()
    def accuracy(self, packs: list[tuple[list[str], Packed]]) -> dict[str, float]:
        """Share of questions by task whose answer, all of its tokens, is the likeliest."""
        hits: dict[str, list[bool]] = {}
        for tasks, packed in packs:
            packed = Packed(*(tensor.to(self.device) for tensor in packed))
            states = self._read(packed)[0]
            for task, right in zip(tasks, answered(self.model, packed, states), strict=True):
                hits.setdefault(task, []).append(right)
        return {task: sum(hits[task]) / len(hits[task]) for task in TASKS if task in hits}

    def low_rank(self) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
        """The thin matrices of each changed matrix, and the scale of their product."""
        found = {}
        for name, down in self.changes.items():
            if ".lora_A." in name:
                found[name.split(".lora_A.")[0]] = (down, self.changes[name.replace("lora_A", "lora_B")])
        return found, SCALE

    def save(self, path: Path, done: dict[str, int], seed: int) -> None:
        """Write a checkpoint: tensors, and what else there is as JSON in the header."""
        state = {"done": done, "seed": seed, "config": dataclasses.asdict(self.config)}
        checkpoints.save(path, self.parameters, [self.optimiser], state)

    def load(self, path: Path, seed: int) -> dict[str, int]:
        """Take over a checkpoint and return the steps that were done in each stage."""
        wanted = {"seed": seed, "config": dataclasses.asdict(self.config)}
        state = checkpoints.load(path, self.parameters, lambda kind: self.optimiser, wanted)
        done: dict[str, int] = state["done"]
        return done


SCALE = 2.0
"""Of the low-rank changes."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(
    out: Path,
    *,
    seed: int = 0,
    config: SmolConfig | None = None,
    base: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> Path:
    """Train `smollm2` and return the file with what was learnt, for `load`.

    Parameters
    ----------
    out : Path
        Folder for checkpoints, and in the end for ``adapter.safetensors``.
    seed : int
        Decides the first weights and the pictures.
    config : SmolConfig, optional
    base : str or Path, optional
        Folder of the language model, see `base_folder`.
    resume : bool
        Go on from the checkpoints in `out`.
    device : str
        Where to train, ``"cuda"`` for one.
    log : callable
        Gets a line now and then.
    """
    config = config or SmolConfig()
    language = base_folder(base)
    out.mkdir(parents=True, exist_ok=True)
    tower = None
    if not config.start:
        shape = config.tower(json.loads((language / "config.json").read_text())["hidden_size"])
        tower = train_towers(out / "tower", config.tower_rounds, shape, seed, resume, device, log)
    learner = SmolLearner(config, seed, tower, language, device)
    checkpoint = out / CHECKPOINT
    begun = {"align": config.align_steps if config.start else 0, "answers": 0}
    done = learner.load(checkpoint, seed) if resume and checkpoint.is_file() else begun
    if done["align"] < config.align_steps:
        plan = [_aligning(step, seed) for step in range(done["align"], config.align_steps)]
        for step, batch in enumerate(batches_ahead(plan), done["align"]):
            said = learner.align(step, batch)
            if (step + 1) % 20 == 0:
                log(
                    f"align {step + 1}/{config.align_steps} "
                    + " ".join(f"{name} {value:.3f}" for name, value in said.items())
                )
        done["align"] = config.align_steps
        learner.optimiser.state.clear()
        learner.save(checkpoint, done, seed)
    validation = _validation(learner.packer, config)
    sums: dict[str, list[float]] = {}
    began, first = time.monotonic(), done["answers"]
    for step, packed in _packs_ahead(learner.packer, config, seed, first):
        for name, loss in learner.answer(step, packed).items():
            sums.setdefault(name, []).append(loss)
        now = step + 1
        if now % 10 == 0:
            means = " ".join(f"{name} {math.fsum(found) / len(found):.3f}" for name, found in sums.items())
            log(
                f"answers {now}/{config.answer_steps} {means} | {(time.monotonic() - began) / (now - first):.2f} s/step"
            )
            sums.clear()
        if now % config.checkpoint_every == 0 or now == config.answer_steps:
            learner.save(checkpoint, done | {"answers": now}, seed)
            if now % (4 * config.checkpoint_every) == 0 or now == config.answer_steps:
                found = learner.accuracy(validation)
                mean = sum(found.values()) / len(found)
                log(f"  mean {mean:.3f} " + " ".join(f"{task} {value:.2f}" for task, value in found.items()))
    save_adapter(out / ADAPTER, learner.model, *learner.low_rank())
    return out / ADAPTER


def _aligning(step: int, seed: int) -> list[Recipe]:
    """The exhibits of a step of the second stage."""
    kinds = (["scene"] * 12 + ["chart"] * 2 + ["table"] * 2) if step % 4 != 3 else ["document"] * 4
    first = (seed * MAX_STEPS + MAX_STEPS // 2 + step) * 16
    return [Recipe(kind, split_seed("train", first + i)) for i, kind in enumerate(kinds)]


def _recipes(config: SmolConfig, step: int, seed: int) -> list[Recipe]:
    """The exhibits of a step of the third stage."""
    simple = not config.start and step < config.simple * config.answer_steps
    shares = SHARES["simple" if simple else MENU[step % len(MENU)]]
    kinds = [kind for kind, share in shares.items() for _ in range(max(1, round(config.batch_size * share)))]
    first = (seed * MAX_STEPS + MAX_STEPS // 4) * 16 + step * 16
    return [Recipe(kind, split_seed("train", first + i), simple) for i, kind in enumerate(kinds)]


def _packs_ahead(packer: Packer, config: SmolConfig, seed: int, first: int) -> Iterator[tuple[int, Packed]]:
    """The packed exhibits of each step from `first` on, made by a thread while earlier ones are used."""

    def make(step: int) -> Packed:
        exhibits = [make_exhibit(kind, one, simple=simple) for kind, one, simple in _recipes(config, step, seed)]
        return packer(exhibits, config.questions)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, first) if first < config.answer_steps else None
        for step in range(first, config.answer_steps):
            assert coming is not None
            packed = coming.result()
            coming = pool.submit(make, step + 1) if step + 1 < config.answer_steps else None
            yield step, packed


def _validation(packer: Packer, config: SmolConfig) -> list[tuple[list[str], Packed]]:
    """Packed exhibits of every kind from the validation split, with the tasks of their questions."""
    found = []
    for kind, share in {"scene": 1.0, "chart": 1.0, "table": 0.5, "document": 0.25, "pair": 1.0, "video": 1.0}.items():
        for index in range(0, max(1, round(config.validation_images * share)), 2):
            exhibits = [make_exhibit(kind, split_seed("validation", index + i)) for i in range(2)]
            tasks = [question.task for exhibit in exhibits for question in exhibit.questions[: config.questions]]
            found.append((tasks, packer(exhibits, config.questions)))
    return found
