"""How to train, whatever the method: LoRA, learning rate, batches, steps."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.errors import TrainingError
from foveate.serialise import check

#: What a curriculum may be called; `foveate.training.curriculum` says what each is.
CURRICULA = ("hard-to-easy", "easy-to-hard", "constant")


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the stock LoRA recipe of LLaVA-1.5.

    Attributes:
        rank, alpha, dropout: of LoRA; alpha null: twice the rank, as in that recipe.
        lr: learning rate at its highest, in all stages; null: that of each stage, from the method's paper. In a stage it rises
            for ``warmup`` of the steps, then falls as a cosine to 0.
        warmup: share of the steps.
        epochs: passes over the data; ``steps`` above 0 counts optimiser steps instead.
        steps: see ``epochs``.
        batch: chats that go forward together, on each device.
        accumulate: batches for one optimiser step.
        save_every: steps between checkpoints; 0: none but the last.
        workers: processes that prepare data; 0: this one does.
        gradient_checkpointing: compute activations twice to save memory.
        tower: LoRA on the linear layers of the vision tower, too, where there is LoRA: where tokens leave before the language
            model has read them, only the tower can move what they hold.
    """

    rank: int = 128
    alpha: int | None = None
    dropout: float = 0.05
    lr: float | None = None
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
