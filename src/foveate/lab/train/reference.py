"""``foveate train reference``: checks what a person may get wrong, then trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from foveate.lab.devices import device_of
from foveate.lab.terminal import CommandError
from foveate.lab.words import assigned
from foveate.serialise import build
from foveate_reference.model import ARCHITECTURES
from foveate_reference.train import CHECKPOINT, RECIPES, TrainConfig
from foveate_reference.train import train as train_reference


def train(
    out: Path,
    recipe: str,
    seed: int,
    resume: bool,
    device: str,
    assignments: Sequence[str],
    tell: Callable[[str], None],
) -> Path:
    """Train into ``out``; the folder of the model."""
    if recipe not in RECIPES:
        raise CommandError(f"no recipe {recipe!r}: choose {', '.join(RECIPES)}")
    config = build(TrainConfig, asdict(RECIPES[recipe]) | assigned(TrainConfig, assignments))
    if config.architecture not in ARCHITECTURES:
        raise CommandError(f"no architecture {config.architecture!r}: choose {' or '.join(ARCHITECTURES)}")
    checkpoint = out / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise CommandError(f"there is no {checkpoint} to resume from: leave --resume out to begin")
    if not resume and checkpoint.exists():
        raise CommandError(f"{checkpoint} is there already: add --resume to go on, or choose another folder")
    device_of(device)
    try:
        return train_reference(out, seed=seed, config=config, resume=resume, device=device, log=tell)
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise CommandError(f"cannot train into {str(out)!r}: {error}") from None
