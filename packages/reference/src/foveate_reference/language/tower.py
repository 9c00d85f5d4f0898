"""The vision tower of `smollm2`: grown from the small one of the reference LLaVA, and trained in rounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from foveate_reference.model import load
from foveate_reference.train import CHECKPOINT, TrainConfig, train


def train_towers(
    out: Path, rounds: int, shape: TrainConfig, seed: int, resume: bool, device: str, log: Callable[[str], None]
) -> Path:
    """Train so many rounds, in a folder each, and return the folder of the model of the last one."""
    start, model = grow, out
    for number in range(rounds):
        folder = out / str(number + 1)
        model = folder / "model"
        if not (model / "config.json").is_file():
            going = resume and (folder / CHECKPOINT).is_file()
            train(folder, seed=seed + number, config=shape, start=start, resume=going, device=device, log=log)
        start = partial(take_tower, model)
    return model


def take_tower(folder: Path, model: Any) -> None:
    """Give a model the tower and the connector of the one in a folder."""
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    for part in ("vision_tower", "multi_modal_projector"):
        own = {name.split(f"{part}.", 1)[1]: value.float() for name, value in found.items() if f"{part}." in name}
        getattr(model.model, part).load_state_dict(own)


@torch.no_grad()
def grow(model: Any) -> None:
    """Give a model the tower of the reference LLaVA, spread over its own blocks, which at first add nothing between them."""
    trained = load("llava")[0].model.vision_tower
    tower = model.model.vision_tower
    for part in ("embeddings", "pre_layrnorm"):
        getattr(tower, part).load_state_dict(getattr(trained, part).state_dict())
    blocks = tower.encoder.layers
    for block in blocks:
        for last in (block.self_attn.out_proj, block.mlp.fc2):
            last.weight.zero_()
            last.bias.zero_()
    used = trained.encoder.layers[:-1]  # LLaVA reads what enters the last one
    apart = (len(blocks) - 1) // len(used)
    for number, block in enumerate(used):
        blocks[(number + 1) * apart - 1].load_state_dict(block.state_dict())
