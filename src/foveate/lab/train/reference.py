"""``foveate train reference``: checks what a person may get wrong, then trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from foveate.errors import first_line, nearest
from foveate.lab import outputs
from foveate.lab.devices import device_of
from foveate.lab.terminal import CommandError
from foveate.lab.words import assigned
from foveate.serialise import build
from foveate_reference.language import NAME as SMOLLM2
from foveate_reference.language.train import SmolConfig
from foveate_reference.language.train import train as train_smollm2
from foveate_reference.model import ARCHITECTURES
from foveate_reference.train import CHECKPOINT, RECIPES, TrainConfig
from foveate_reference.train import train as train_reference

TOWER = "tower"
"""Folder of the first stage of `smollm2`."""


def train(
    out: Path,
    recipe: str,
    seed: int,
    device: str,
    assignments: Sequence[str],
    overwrite: bool,
    tell: Callable[[str], None],
) -> Path:
    """Train into ``out``, or go on from the checkpoint there; the folder of the model, or the file of what was learnt."""
    recipes: dict[str, TrainConfig | SmolConfig] = {**RECIPES, SMOLLM2: SmolConfig()}
    if recipe not in recipes:
        raise CommandError(f"--recipe {recipe!r}{nearest(recipe, recipes)}: choose {', '.join(recipes)}")
    usual = recipes[recipe]
    config = build(type(usual), asdict(usual) | assigned(type(usual), assignments, "set"))
    if isinstance(config, TrainConfig) and config.architecture not in ARCHITECTURES:
        raise CommandError(f"no architecture {config.architecture!r}: choose {' or '.join(ARCHITECTURES)}")
    device_of(device)
    checkpoint = out / CHECKPOINT
    begun = checkpoint.exists() or (isinstance(config, SmolConfig) and (out / TOWER).exists())
    if overwrite:
        outputs.clear(out, [CHECKPOINT, TOWER])
    elif not begun and outputs.holds_anything(out):
        raise outputs.taken(out)
    elif checkpoint.exists() and _run_of(checkpoint) != {"seed": seed, "config": asdict(config)}:
        raise outputs.taken(checkpoint, "is of another run, with another recipe, seed or --set")
    begun = begun and not overwrite
    try:
        if isinstance(config, SmolConfig):
            return train_smollm2(out, seed=seed, config=config, resume=begun, device=device, log=tell)
        return train_reference(out, seed=seed, config=config, resume=begun, device=device, log=tell)
    except KeyboardInterrupt:
        if checkpoint.exists() or (out / TOWER).exists():
            outputs.keeps(out)
        raise
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise CommandError(f"cannot train into {str(out)!r}: {error}") from None


def _run_of(checkpoint: Path) -> dict[str, Any]:
    """What the run of a checkpoint is, as plain data."""
    try:
        with safe_open(checkpoint, "pt") as file:
            state = json.loads(file.metadata()["state"])
        return {name: state[name] for name in ("seed", "config")}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CommandError(f"cannot read {str(checkpoint)!r}: {first_line(error)}") from None
