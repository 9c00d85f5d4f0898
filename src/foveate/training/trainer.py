"""transformers' Trainer, for a module of which little is trained: small checkpoints, and a learning rate for each stage."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foveate.errors import TrainingError, first_line
from foveate.training.pupil import Pupil

WEIGHTS = "model.safetensors"  # the name that Trainer looks for


class Trainer(transformers.Trainer):  # type: ignore[misc,unused-ignore]
    """Attributes:
    rates: the highest learning rate of each stage.
    """

    rates: Sequence[float] = (1.0,)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """In every stage the rate rises in a line, and falls as a cosine to 0."""
        if self.lr_scheduler is None:
            share = float(self.args.warmup_steps)

            def rate(step: int) -> float:
                return rate_at(step, num_training_steps, self.rates, share)

            used: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(used, rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With every loss by its name, and how far soft and hard agree."""
        if "loss" in logs:
            logs = {**self._pupil.said(), **logs}
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self._pupil.trained().items()}
        save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        own, path = self._pupil.trained(), os.path.join(resume_from_checkpoint, WEIGHTS)
        try:
            given = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"cannot go on from {path!r}: {first_line(error)}") from None
        if given.keys() != own.keys() or any(given[name].shape != own[name].shape for name in own):
            raise TrainingError(f"cannot go on from {path!r}: it has not what is trained here, begin anew")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(given[name])

    @property
    def _pupil(self) -> Pupil:
        pupil: Pupil = self.accelerator.unwrap_model(self.model)
        return pupil


def rate_at(step: int, steps: int, rates: Sequence[float], warmup: float) -> float:
    """The learning rate of a step, counted from 0, in stages that are equally long.

    Args:
        step, steps: which one of how many.
        rates: the highest of each stage.
        warmup: the share of a stage in which it rises.
    """
    stage = min(step * len(rates) // max(1, steps), len(rates) - 1)
    first, end = (-(-steps * each // len(rates)) for each in (stage, stage + 1))
    rising = math.ceil(warmup * (end - first))
    if step - first < rising:
        return rates[stage] * (step - first) / rising
    return (
        rates[stage] * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - first - rising) / max(1, end - first - rising))))
    )
