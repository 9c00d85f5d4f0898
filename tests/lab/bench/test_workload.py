"""Prompts have the visual tokens that were asked for, or as near as the model can come."""

from __future__ import annotations

import pytest
import torch

import foveate_reference as reference
from foveate.lab.bench import shapes
from foveate.lab.bench.workload import TEXT, Processed, Shaped
from foveate.lab.loading import load
from foveate.lab.terminal import CommandError

NAMES = list(shapes.SHAPES)
needs_weights = pytest.mark.skipif(
    not all((path / "model.safetensors").is_file() for path in reference.PATHS.values()),
    reason="the reference models' weights are missing",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 60, 256, 300, 1024, 4096, 16_384])
def test_layouts(name: str, tokens: int) -> None:
    found = Shaped(shapes.config_of(name)).layout(tokens)
    assert found.tokens == found.images * found.size[0] * found.size[1]
    one = {"llava": 576, "internvl": 256}.get(shapes.config_of(name).model_type)
    if one is None:
        assert found.images == 1
        assert abs(found.tokens - tokens) <= found.size[0] / 2
        assert found.size[0] <= found.size[1] <= 2 * found.size[0] + 1
    else:
        assert found.tokens == one * max(1, round(tokens / one))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_inputs(name: str, batch: int) -> None:
    config = shapes.config_of(name)
    prompts = Shaped(config)
    layout = prompts.layout(60)
    made = prompts.inputs(layout, batch, seed=0)
    visual = made["input_ids"] == config.image_token_id
    assert visual.sum(1).tolist() == [layout.tokens] * batch
    others = TEXT if prompts.side else TEXT + 2 * layout.images
    assert made["input_ids"].shape == (batch, layout.tokens + others)
    again, other = prompts.inputs(layout, batch, seed=0), prompts.inputs(layout, batch, seed=1)
    assert all(torch.equal(made[key], again[key]) for key in made)
    assert not torch.equal(made["pixel_values"], other["pixel_values"])


@needs_weights
@pytest.mark.parametrize(("name", "tokens", "images"), [("reference", 400, 1), ("reference-llava", 350, 4)])
def test_a_real_processor(name: str, tokens: int, images: int) -> None:
    model, processor = load(name)
    prompts = Processed(name, model.config, processor)
    layout = prompts.layout(tokens)
    assert layout.images == images
    assert abs(layout.tokens - tokens) <= 50
    made = prompts.inputs(layout, 2, seed=0)
    assert (made["input_ids"] == prompts.placeholder).sum(1).tolist() == [layout.tokens] * 2


@needs_weights
def test_a_processor_without_a_chat_template() -> None:
    model, processor = load("reference")
    processor.chat_template = None
    with pytest.raises(CommandError, match="has no chat template"):
        Processed("mine", model.config, processor)
