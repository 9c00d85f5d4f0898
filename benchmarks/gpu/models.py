"""Models with random weights, of true shape but for their depth, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.lab.bench import memory, shapes
from foveate.lab.bench.workload import Shaped

SHAPES = ("qwen2.5-vl-7b", "llava-1.5-7b")


def config_of(shape: str, layers: int = 0, blocks: int = 0, small: bool = False) -> Any:
    """The config of a shape with so many decoder layers and vision blocks (0: all of them).

    ``small``: of widths for a CPU, which shows that a program runs and nothing else.
    """
    if shape.startswith("qwen"):
        config: Any = shapes.qwen2_5_small(64, layers or 6, blocks=blocks or 4) if small else shapes.config_of(shape)
        text, vision = config.text_config, config.vision_config
        text.num_hidden_layers, vision.depth = layers or text.num_hidden_layers, blocks or vision.depth
        _shortened(text)
        if blocks:
            vision.fullatt_block_indexes = [blocks - 1]
        return config
    config = shapes.config_of("small-llava" if small else shape)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers = layers or text.num_hidden_layers
    if blocks:
        vision.num_hidden_layers = blocks + 1  # its last block does not reach the language model
    if small:
        text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 64, 128, 1, 1
        vision.image_size = 84
    return config


def _shortened(text: Any) -> None:
    """Make what is said of every layer fit their number."""
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]


def fitting(shape: str, dtype: torch.dtype, device: torch.device, tokens: int) -> int:
    """The number of decoder layers that fit into memory with a cache of so many tokens: all, or a half, a quarter ..."""
    layers = shapes.config_of(shape).get_text_config().num_hidden_layers
    free = memory.available(device)
    while layers > 2:
        config = config_of(shape, layers)
        with torch.device("meta"):
            size = sum(each.numel() for each in _skeleton(config).parameters()) * dtype.itemsize
        if free is None or 1.2 * (size + memory.kv_bytes(config, tokens, dtype)) < free:
            break
        layers //= 2
    return int(layers)


def _skeleton(config: Any) -> nn.Module:
    import transformers

    model: nn.Module = transformers.AutoModelForImageTextToText.from_config(config)
    return model


def ragged(config: Any, sizes: Sequence[int], seed: int) -> dict[str, Tensor]:
    """A batch of a row for each size, of about so many visual tokens, padded on the left."""
    prompts = Shaped(config)
    rows = [prompts.inputs(prompts.layout(size), 1, seed + number) for number, size in enumerate(sizes)]
    longest = max(row["input_ids"].shape[1] for row in rows)
    made = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            values = [nn.functional.pad(value, (longest - value.shape[1], 0)) for value in values]
        made[name] = torch.cat(values)
    return made


def moved(batch: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The batch where the model is, pixels in its dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }
