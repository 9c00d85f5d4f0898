"""``foveate train adsc``: LoRA training with the compression on, as it will be when the model is used.

"Attention-Driven Self-Compression" (arXiv 2602.12618). From the paper's abstract: supervised instruction tuning with LoRA
and a reverse curriculum over the ratios; no loss but the next token's. From the stock LoRA recipe of LLaVA-1.5, as the
paper's own values are not public: rank 128, alpha 256, dropout 0.05, learning rate 2e-4, cosine, 3 % warm-up, one epoch,
all linear layers of the language model. Ours: the projector is not trained; the reverse curriculum goes from the
hardest ratio to the target in thirds; the vision tower may be trained as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from rich.console import Console
from torch import nn

from foveate import adapter, trained
from foveate.errors import FoveateError, first_line
from foveate.handle import host_of
from foveate.loading import REFERENCES, device_of, load
from foveate.method import Method
from foveate.methods.adsc import ADSC
from foveate.models import family_of
from foveate.models.family import Family
from foveate.serialise import check, from_json
from foveate.terminal import CommandError
from foveate.training import card, data
from foveate.training.collator import Collator
from foveate.training.curriculum import Compression, Curriculum, Progress

#: What a run is and has done; a run that goes on must be the same.
RECORD = "foveate_training.json"
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
                raise CommandError(f"Recipe.{name}={getattr(self, name)}: give a number above 0")
        for name in ("steps", "save_every", "workers"):
            if getattr(self, name) < 0:
                raise CommandError(f"Recipe.{name}={getattr(self, name)}: give 0 or more")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise CommandError(f"Recipe.{name}={getattr(self, name)}: give a share from 0 to below 1")


@dataclass(frozen=True)
class Request:
    """What to train.

    Attributes:
        out: folder for the adapter, its method, the record and the checkpoints.
        model: a folder, a hub id, ``reference`` or ``reference-llava``.
        source: the data, see `foveate.training.data.load`; ``split`` and ``samples`` belong to it.
        method: what is trained for.
        curriculum: see `Curriculum.parse`.
        recipe: how.
        seed: of data order, first LoRA matrices and dropout.
        dtype, device: as `foveate run` takes them.
    """

    out: Path
    model: str = "reference"
    source: str = data.REFERENCE
    split: str = "train"
    samples: int | None = None
    method: Method = field(default_factory=ADSC)
    curriculum: str = "hard-to-easy"
    recipe: Recipe = Recipe()
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"


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


def train(request: Request, resume: bool, tell: Callable[[str], None]) -> Trained:
    """Train, or go on training from the last checkpoint. ``tell`` gets a line before each step that may take long."""
    recipe = request.recipe
    method = request.method
    if not isinstance(method, ADSC):
        raise CommandError(f"{method!r} is not ADSC, and nothing else can be trained here")
    curriculum = Curriculum.parse(request.curriculum, method.usual_keep if method.keep is None else method.keep)
    record = _open(request, resume)
    if resume and (finished := _finished(request.out)):
        tell(f"{str(request.out)!r} is finished")
        return finished
    peft = _require(recipe.gradient_checkpointing)
    device = device_of(request.device)
    tell(f"loading {request.model}")
    model, processor = load(request.model, request.dtype)
    host = host_of(model)
    for keep in curriculum.keeps:  # what cannot be attached is said before anything is trained
        replace(method, keep=keep).sites(host)
    config, family = model.config, family_of(model.config)
    visual = [getattr(config, name) for name in family.modalities.values()]
    tile = int(getattr(config.vision_config, "image_size", 0)) if request.model in REFERENCES else 0
    tell(f"reading {request.source}")
    chats = data.load(request.source, request.split, request.samples, request.seed, tile)
    collator = Collator(processor, visual)
    collator([chats[0]])

    transformers.set_seed(request.seed)
    lora = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha or 2 * recipe.rank,
        lora_dropout=recipe.dropout,
        target_modules=_targets(model, family, recipe.tower),
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, lora)
    if recipe.gradient_checkpointing:
        adapted.enable_input_require_grads()  # else nothing that enters a checkpoint would need a gradient
        adapted.gradient_checkpointing_enable()
    compression = Compression(adapted, lambda keep: replace(method, keep=keep), curriculum)
    trainer = transformers.Trainer(
        model=adapted,
        args=_arguments(request, device),
        data_collator=collator,
        train_dataset=chats,
        callbacks=[compression, Progress(tell)],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    tell(f"training {method!r}, {request.curriculum}")
    checkpoints = request.out / CHECKPOINTS
    _write(request.out, record)
    try:
        # One that was stopped before its first checkpoint begins again.
        done = trainer.train(resume_from_checkpoint=(resume and any(checkpoints.glob("checkpoint-*"))) or None)
    except FoveateError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        raise CommandError(f"cannot train into {str(request.out)!r}: {first_line(error)}") from None
    finally:
        compression.remove()
    adapted.peft_config["default"].base_model_name_or_path = request.model
    trained.save(request.out, method, host, nn.ModuleDict(), adapted)
    card.write(request.out, request.model, request.source, method, request.curriculum, done.global_step)
    losses = tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    _write(request.out, {**record, "steps": done.global_step, "losses": losses, "stages": compression.stages})
    return Trained(request.out, done.global_step, losses, tuple(compression.stages))


def to_json(found: Trained) -> dict[str, Any]:
    """Plain data."""
    return {
        "adapter": str(found.folder),
        "steps": found.steps,
        "losses": list(found.losses),
        "stages": [{"step": step, "keep": keep} for step, keep in found.stages],
    }


def show(found: Trained, console: Console) -> None:
    """For a person."""
    for step, keep in found.stages:
        console.print(f"from step {step:5}  {keep:.1%} of the visual tokens kept")
    if found.losses:
        console.print(f"{found.steps} steps, loss {found.losses[0]:.3f} to {found.losses[-1]:.3f}")
    console.print(f'foveate.compress(model, "{found.folder}") attaches it', markup=False, soft_wrap=True)


def _require(checkpointing: bool) -> Any:
    try:
        import accelerate  # noqa: F401  # transformers' Trainer needs it
        import peft
    except ImportError as error:
        raise CommandError(f"training needs {error.name}: pip install 'foveate[train]'") from None
    if checkpointing and Version(transformers.__version__) < Version("5.23"):
        raise CommandError(
            "gradient_checkpointing needs transformers 5.23 or newer, which keep hooks out of checkpoints"
        )
    return peft


def _open(request: Request, resume: bool) -> dict[str, Any]:
    """What the run is, as plain data, after comparing it with what the folder says."""
    described = {
        **{
            name: getattr(request, name)
            for name in ("model", "source", "split", "samples", "curriculum", "seed", "dtype")
        },
        "method": request.method.to_json(),
        "recipe": asdict(request.recipe),
    }
    out = request.out
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CommandError(f"{str(out)!r} is there already: add --resume to go on, or choose another folder")
        return described
    if not (out / RECORD).is_file():
        raise CommandError(
            f"there is no run in {str(out)!r} to resume: leave --resume out to begin one in an empty folder"
        )
    try:
        before = from_json((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {str(out / RECORD)!r}: {first_line(error)}") from None
    if not isinstance(before, dict):
        raise CommandError(f"{str(out / RECORD)!r} is not the record of a run: choose another folder")
    for name, value in described.items():
        if before.get(name) != json.loads(json.dumps(value)):
            raise CommandError(
                f"{str(out)!r} was begun with another {name}, {json.dumps(before.get(name))}: resume with the same options, "
                "or choose another folder"
            )
    return described


def _finished(out: Path) -> Trained | None:
    """What the run in a folder came to, if it has ended."""
    record = from_json((out / RECORD).read_text(encoding="utf-8"))
    if "losses" not in record or not (out / adapter.WEIGHTS).is_file():
        return None
    try:
        stages = tuple((int(step), float(keep)) for step, keep in record["stages"])
        return Trained(out, int(record["steps"]), tuple(record["losses"]), stages)
    except (KeyError, ValueError, TypeError):
        raise CommandError(
            f"{str(out / RECORD)!r} is not the record of a run that has ended: delete the folder"
        ) from None


def _write(out: Path, record: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write to {str(out)!r}: {error}") from None


def _targets(model: nn.Module, family: Family, with_tower: bool) -> str:
    """A pattern for the linear layers of the language model, and of those blocks of the tower whose output it sees."""
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


def _arguments(request: Request, device: torch.device) -> transformers.TrainingArguments:
    recipe = request.recipe
    return transformers.TrainingArguments(
        output_dir=str(request.out / CHECKPOINTS),
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
        seed=request.seed,
        bf16=request.dtype == "bfloat16" and device.type == "cuda",
        use_cpu=device.type == "cpu",
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,  # the collator wants whole chats
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )
