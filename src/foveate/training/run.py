"""Trains a method that has something to learn, on a model and data of the user: one loop for all of them.

`foveate.learning` says what a method declares; here it becomes a run of transformers' Trainer, with LoRA of PEFT where a stage
trains the model. Checkpoints have what is trained and nothing else; a run that goes on from one equals one that never stopped.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn

from foveate import extras, trained
from foveate.errors import FoveateError, TrainingError, first_line
from foveate.handle import Handle, host_of
from foveate.method import Host, Method
from foveate.methods import list_methods
from foveate.models import family_of
from foveate.models.family import Family
from foveate.runtime.learned import part_names
from foveate.training import card
from foveate.training.collator import Collator
from foveate.training.curriculum import Curriculum, Progress, Stages
from foveate.training.data import Chats
from foveate.training.pupil import Pupil
from foveate.training.recipe import Recipe
from foveate.training.trainer import Trainer

CHECKPOINTS = trained.CHECKPOINTS
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Plan:
    """What to train for.

    Attributes:
        out: folder for what is trained, its method, its card and the checkpoints.
        model: the model's name, for the card.
        method: what is trained for.
        curriculum: see `Curriculum.parse`; None: the method's own.
        recipe: how.
        seed: of data order, first weights and dropout.
        device: where to train.
        bf16: compute in bfloat16, where the device is a GPU.
    """

    out: Path
    model: str
    method: Method
    curriculum: str | None = None
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
        agreement: the share of soft gates that the hard choice keeps, when losses were logged; (): nothing is soft.
    """

    folder: Path
    steps: int
    losses: tuple[float, ...]
    stages: tuple[tuple[int, float], ...]
    agreement: tuple[float, ...] = ()


class Run:
    """A model that is ready to be trained: what cannot work is said when it is made, before anything is written."""

    def __init__(self, model: Any, processor: Any, chats: Chats, plan: Plan, tell: Callable[[str], None]) -> None:
        """
        Args:
            model: a supported one; it is frozen, or LoRA is put on it, as the method's stages say.
            processor: of the model.
            chats: what to learn, see `foveate.training.data.load`.
            plan: for what, and how.
            tell: gets a line for every loss that is logged.
        """
        method, recipe = plan.method, plan.recipe
        check_method(method)
        peft = require(recipe.gradient_checkpointing)
        self.plan, self.chats, self._host = plan, chats, host_of(model)
        self._name = method.curriculum if plan.curriculum is None else plan.curriculum
        curriculum = curriculum_of(method, self._name, self._host)
        for keep in curriculum.keeps:  # `compress` would warn that nothing is trained yet
            Handle(model, curriculum.method_at(method, keep)).remove()
        family = family_of(model.config)
        visual = [getattr(model.config, name) for name in family.modalities.values()]
        collator = Collator(processor, visual)
        collator([chats[0]])
        transformers.set_seed(plan.seed)
        if any(stage.target == "relevance" for stage in method.stages):
            model.set_attn_implementation("eager")  # other kernels have no maps
        self._adapted = model.requires_grad_(False)
        if any("lora" in stage.trains for stage in method.stages):
            with warnings.catch_warnings():  # PEFT asks by a name that transformers will give up
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                self._adapted = peft.get_peft_model(model, _lora(peft, model, family, recipe))
        if recipe.gradient_checkpointing:
            self._adapted.enable_input_require_grads()  # else nothing that enters a checkpoint would need a gradient
            self._adapted.gradient_checkpointing_enable()
        self._pupil = Pupil(self._adapted, method.modules(self._host), self._host, visual)
        self._stages = Stages(self._pupil, method, curriculum)
        self._trainer = Trainer(
            model=self._pupil,
            args=_arguments(plan),
            data_collator=collator,
            train_dataset=chats,
            callbacks=[self._stages, Progress(tell)],
        )
        if self._trainer.args.n_gpu > 1:
            raise TrainingError("one process trains on one GPU, and sees several: choose one with CUDA_VISIBLE_DEVICES")
        self._trainer.rates = [stage.lr if recipe.lr is None else recipe.lr for stage in method.stages]
        self._trainer.remove_callback(transformers.trainer_callback.PrinterCallback)

    @property
    def is_main(self) -> bool:
        """Whether this process writes, of several that train together."""
        return bool(self._trainer.is_world_process_zero())

    def train(self, resume: bool = False) -> Trained:
        """Train, or go on from the last checkpoint in the folder, and write what was trained, the method and a card."""
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
            self._pupil.leave()
        if self.is_main:
            if self._pupil.groups["lora"]:
                self._adapted.peft_config["default"].base_model_name_or_path = plan.model
            parts = {part_names(plan.method)[0]: self._pupil.parts} if len(self._pupil.parts) else {}
            trained.save(plan.out, plan.method, self._host, nn.ModuleDict(parts), self._adapted)
            card.write(plan.out, plan.model, self.chats.source, plan.method, self._name, done.global_step)
        self._trainer.accelerator.wait_for_everyone()
        logged = [entry for entry in self._trainer.state.log_history if "loss" in entry]
        losses = tuple(float(entry["loss"]) for entry in logged)
        agreement = tuple(float(entry["agreement"]) for entry in logged if "agreement" in entry)
        return Trained(plan.out, done.global_step, losses, tuple(self._stages.begun), agreement)


def check_method(method: Method) -> None:
    """Raise `TrainingError` for a method that has nothing to train, or with options that leave nothing to choose."""
    if not method.stages:
        can = ", ".join(name for name, cls in list_methods().items() if cls.stages)
        raise TrainingError(f"{method!r} has nothing to train; what has: {can}")
    if method.keep == 0:
        raise TrainingError(f"{method!r} keeps no token, so there is nothing to choose: train it with a keep above 0")


def curriculum_of(method: Method, text: str, host: Host) -> Curriculum:
    """Return the stages that end at what the method keeps."""
    return Curriculum.parse(text, round(method.mean(host), 6) if method.keep is None else method.keep)


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


def _lora(peft: Any, model: nn.Module, family: Family, recipe: Recipe) -> Any:
    return peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha or 2 * recipe.rank,
        lora_dropout=recipe.dropout,
        target_modules=_targets(model, family, recipe.tower),
        task_type="CAUSAL_LM",
    )


def _targets(model: nn.Module, family: Family, with_tower: bool) -> str:
    """Return a pattern for the linear layers of the language model, and of those blocks of the tower whose output it sees."""
    decoder, tower = family.decoder, family.tower
    layers = rf"(.*\.)?{decoder.module}\.{decoder.layers}\.\d+\.\w+\.({'|'.join(PROJECTIONS)})"
    if not with_tower:
        return layers
    config: Any = model.config
    seen = "|".join(map(str, range(tower.last_block(config) + 1)))
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
        learning_rate=1.0,  # times what the trainer's schedule says
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
        ddp_find_unused_parameters=True,  # of a stage that trains a part of what some stage trains
        remove_unused_columns=False,  # the collator wants whole chats
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )
