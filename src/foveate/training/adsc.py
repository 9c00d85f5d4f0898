"""Teaches a model, with LoRA and the compression on, to put what it sees into fewer tokens.

"Attention-Driven Self-Compression" (arXiv 2602.12618). From the paper's abstract: supervised instruction tuning with LoRA
and a reverse curriculum over the ratios; no loss but the next token's. From the stock LoRA recipe of LLaVA-1.5, as the
paper's own values are not public: rank 128, alpha 256, dropout 0.05, learning rate 2e-4, cosine, 3 % warm-up, one epoch,
all linear layers of the language model. Ours: the projector is not trained; the reverse curriculum goes from the
hardest ratio to the target in thirds; the vision tower may be trained as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn

from foveate import extras, trained
from foveate.errors import FoveateError, TrainingError, first_line
from foveate.handle import host_of
from foveate.methods.adsc import ADSC
from foveate.models import family_of
from foveate.models.family import Family
from foveate.serialise import check
from foveate.training import card
from foveate.training.collator import Collator
from foveate.training.curriculum import Compression, Curriculum, Progress
from foveate.training.data import Chats

CHECKPOINTS = trained.CHECKPOINTS
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the stock LoRA recipe of LLaVA-1.5.

    Attributes:
        rank, alpha, dropout: of LoRA; alpha null: twice the rank, as in that recipe.
        lr: learning rate at its highest; it rises for ``warmup`` of the steps, then falls as a cosine to 0.
        warmup: share of the steps.
        epochs: passes over the data; ``steps`` above 0 counts optimiser steps instead.
        steps: see ``epochs``.
        batch: chats that go forward together, on each device.
        accumulate: batches for one optimiser step.
        save_every: steps between checkpoints; 0: none but the last.
        workers: processes that prepare data; 0: this one does.
        gradient_checkpointing: compute activations twice to save memory.
        tower: LoRA on the linear layers of the vision tower, too: where tokens leave before the language model has read
            them, only the tower can move what they hold.
    """

    rank: int = 128
    alpha: int | None = None
    dropout: float = 0.05
    lr: float = 2e-4
    warmup: float = 0.03
    epochs: float = 1.0
    steps: int = 0
    batch: int = 16
    accumulate: int = 1
    save_every: int = 500
    workers: int = 0
    gradient_checkpointing: bool = False
    tower: bool = False

    def __post_init__(self) -> None:
        check(self)
        for name in ("rank", "alpha", "lr", "epochs", "batch", "accumulate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise TrainingError(f"Recipe.{name}={getattr(self, name)}: give a number above 0")
        for name in ("steps", "save_every", "workers"):
            if getattr(self, name) < 0:
                raise TrainingError(f"Recipe.{name}={getattr(self, name)}: give 0 or more")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"Recipe.{name}={getattr(self, name)}: give a share from 0 to below 1")


@dataclass(frozen=True)
class Plan:
    """What to train for.

    Attributes:
        out: folder for the adapter, its method, its card and the checkpoints.
        model: the model's name, for the card.
        method: what is trained for.
        curriculum: see `Curriculum.parse`.
        recipe: how.
        seed: of data order, first LoRA matrices and dropout.
        device: where to train.
        bf16: compute in bfloat16, where the device is a GPU.
    """

    out: Path
    model: str
    method: ADSC = field(default_factory=ADSC)
    curriculum: str = "hard-to-easy"
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bf16: bool = False


@dataclass(frozen=True)
class Trained:
    """What came out.

    Attributes:
        folder: give it to `foveate.compress`.
        steps: optimiser steps in all.
        losses: of the steps that were logged, in order.
        stages: first step and kept share of each stage that this run did.
    """

    folder: Path
    steps: int
    losses: tuple[float, ...]
    stages: tuple[tuple[int, float], ...]


class Run:
    """A model that is ready to be trained: what cannot work is said when it is made, before anything is written."""

    def __init__(self, model: Any, processor: Any, chats: Chats, plan: Plan, tell: Callable[[str], None]) -> None:
        """
        Args:
            model, processor: a supported model; LoRA is put on it.
            chats: what to learn, see `foveate.training.data.load`.
            plan: for what, and how.
            tell: gets a line for every loss that is logged.
        """
        peft = require(plan.recipe.gradient_checkpointing)
        curriculum = curriculum_of(plan.method, plan.curriculum)
        self.plan, self.chats, self._host = plan, chats, host_of(model)
        for keep in curriculum.keeps:
            replace(plan.method, keep=keep).sites(self._host)
        family, recipe = family_of(model.config), plan.recipe
        collator = Collator(processor, [getattr(model.config, name) for name in family.modalities.values()])
        collator([chats[0]])
        transformers.set_seed(plan.seed)
        lora = peft.LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha or 2 * recipe.rank,
            lora_dropout=recipe.dropout,
            target_modules=_targets(model, family, recipe.tower),
            task_type="CAUSAL_LM",
        )
        self._adapted = peft.get_peft_model(model, lora)
        if recipe.gradient_checkpointing:
            self._adapted.enable_input_require_grads()  # else nothing that enters a checkpoint would need a gradient
            self._adapted.gradient_checkpointing_enable()
        self._compression = Compression(self._adapted, lambda keep: replace(plan.method, keep=keep), curriculum)
        self._trainer = transformers.Trainer(
            model=self._adapted,
            args=_arguments(plan),
            data_collator=collator,
            train_dataset=chats,
            callbacks=[self._compression, Progress(tell)],
        )
        self._trainer.remove_callback(transformers.trainer_callback.PrinterCallback)

    def train(self, resume: bool = False) -> Trained:
        """Train, or go on from the last checkpoint in the folder, and write adapter, method and card."""
        plan = self.plan
        checkpoint = resume and any((plan.out / CHECKPOINTS).glob("checkpoint-*"))
        try:
            # One that was stopped before its first checkpoint begins again.
            done = self._trainer.train(resume_from_checkpoint=checkpoint or None)
        except FoveateError:
            raise
        except (ValueError, OSError, RuntimeError) as error:
            raise TrainingError(f"cannot train into {str(plan.out)!r}: {first_line(error)}") from None
        finally:
            self._compression.remove()
        self._adapted.peft_config["default"].base_model_name_or_path = plan.model
        trained.save(plan.out, plan.method, self._host, nn.ModuleDict(), self._adapted)
        card.write(plan.out, plan.model, self.chats.source, plan.method, plan.curriculum, done.global_step)
        losses = tuple(float(entry["loss"]) for entry in self._trainer.state.log_history if "loss" in entry)
        return Trained(plan.out, done.global_step, losses, tuple(self._compression.stages))


def curriculum_of(method: ADSC, text: str) -> Curriculum:
    """Return the stages that end at what the method keeps."""
    return Curriculum.parse(text, method.usual_keep if method.keep is None else method.keep)


def require(checkpointing: bool) -> Any:
    """The package PEFT; `TrainingError` says what is missing."""
    try:
        import accelerate  # noqa: F401  # transformers' Trainer needs it
        import peft
    except ImportError as error:
        raise TrainingError(f"training needs {error.name}: {extras.install('peft')} gets it") from None
    if checkpointing and Version(transformers.__version__) < Version("5.23"):
        raise TrainingError(
            "gradient_checkpointing needs transformers 5.23 or newer, which keep hooks out of checkpoints"
        )
    return peft


def _targets(model: nn.Module, family: Family, with_tower: bool) -> str:
    """Return a pattern for the linear layers of the language model, and of those blocks of the tower whose output it sees."""
    decoder, tower = family.decoder, family.tower
    layers = rf"(.*\.)?{decoder.module}\.{decoder.layers}\.\d+\.\w+\.({'|'.join(PROJECTIONS)})"
    if not with_tower:
        return layers
    seen = "|".join(map(str, range(tower.last_block(model.config) + 1)))
    block = rf"(.*\.)?{tower.module}\.{tower.blocks}\.({seen})\."
    linear = {
        name[found.end() :]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (found := re.match(block, name))
    }
    return rf"{layers}|{block}({'|'.join(sorted(linear))})"


def _arguments(plan: Plan) -> transformers.TrainingArguments:
    recipe = plan.recipe
    return transformers.TrainingArguments(
        output_dir=str(plan.out / CHECKPOINTS),
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,  # below 1: a share
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps or -1,
        logging_steps=max(1, recipe.steps // 50) if recipe.steps else 10,
        save_strategy="steps",
        save_steps=recipe.save_every or 10**9,
        save_total_limit=2,
        seed=plan.seed,
        bf16=plan.bf16 and plan.device.type == "cuda",
        use_cpu=plan.device.type == "cpu",
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=plan.device.type == "cuda",
        remove_unused_columns=False,  # the collator wants whole chats
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )
