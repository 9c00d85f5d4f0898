"""The vision tower of Gemma 3, whose projector pools patches: units that leave, patches that are not pooled, crops."""

from __future__ import annotations

from typing import Any

import pytest
import test_tiles
import tiny
import torch
from calls import ROWS, close, counted
from probes.synthetic import DropBlocks, ParkHalf, Ragged
from torch import Tensor

import foveate
from foveate.models.family import resize_images


def gemma3_tower(model: Any, pixels: Tensor, keep: list[list[int]], first: int, mid: bool) -> list[Tensor]:
    """By hand, image by image: from block ``first`` (after its attention if ``mid``) the units ``keep`` and what is in none."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    side = pixels.shape[-1] // tiny.PATCH
    out = []
    for image, units in zip(tower.embeddings(pixels), keep, strict=True):
        hidden, rows = image[None], []
        for unit in units:
            y, x = unit // (side // 2) * 2, unit % (side // 2) * 2
            rows += [(y + dy) * side + x + dx for dy in (0, 1) for dx in (0, 1)]
        rows += [row for row in range(side * side) if max(row // side, row % side) >= side // 2 * 2]
        for i, block in enumerate(tower.encoder.layers):
            if i == first and not mid:
                hidden = hidden[:, rows]
            attended = hidden + block.self_attn(block.layer_norm1(hidden))[0]
            if i == first and mid:
                attended = attended[:, rows]
            hidden = attended + block.mlp(block.layer_norm2(attended))
        pooled = tower.post_layernorm(hidden)[0, : 4 * len(units)].reshape(len(units), 4, -1).mean(1)
        out.append(projector.mm_soft_emb_norm(pooled) @ projector.mm_input_projection_weight)
    return out


@pytest.mark.parametrize("mid", [False, True])
@pytest.mark.parametrize("block", [1, 3])
def test_gemma3_with_fewer_units(impl: str, block: int, mid: bool) -> None:
    """Images that keep different numbers are what they are alone; what is gone is a hole after the projector."""
    model, batch = tiny.model("gemma3", impl), tiny.inputs("gemma3", ROWS["gemma3"])
    with torch.no_grad(), foveate.compress(model, Ragged(block=block, mid=mid)):
        found = tiny.marked(model, batch).pooler_output
    assert len({len(units) for units in Ragged.kept}) > 1
    with torch.no_grad():
        expected = gemma3_tower(model, batch["pixel_values"], Ragged.kept, block, mid)
    for image, units, rows in zip(found, Ragged.kept, expected, strict=True):
        assert (~image[:, 0].isnan()).nonzero().flatten().tolist() == units
        close(image[units], rows)


@pytest.mark.parametrize("method", [Ragged(), ParkHalf(), foveate.Downsample(keep=0.5), foveate.ToMe()], ids=repr)
def test_patches_that_gemma3_does_not_pool(method: foveate.Method) -> None:
    """9 x 9 patches make 4 x 4 tokens: the last lines are tokens of none, and the tower works on them all the same."""
    config = tiny.config("gemma3")
    config.vision_config.image_size = 9 * tiny.PATCH
    model, batch = tiny.build(config, "eager"), tiny.inputs("gemma3", ROWS["gemma3"])
    shape = len(batch["pixel_values"]), 3, 9 * tiny.PATCH, 9 * tiny.PATCH
    batch["pixel_values"] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stock = tiny.text_logits(model, batch)
    with foveate.compress(model, DropBlocks(keep=1.0) + foveate.Downsample(keep=1.0)):
        assert torch.equal(tiny.text_logits(model, batch), stock)
    with torch.no_grad(), foveate.compress(model, method) as handle:
        flops = counted("eager", lambda: model(**batch))  # without rotary embeddings, a product in older transformers
        report = handle.report()
        found = tiny.marked(model, batch).pooler_output
    assert sum(report.flops.values()) == flops
    assert report.flops["tower"] < report.full_flops["tower"]
    if isinstance(method, Ragged):
        with torch.no_grad():
            expected = gemma3_tower(model, batch["pixel_values"], Ragged.kept, 1, False)
        for image, units, rows in zip(found, Ragged.kept, expected, strict=True):
            assert (~image[:, 0].isnan()).nonzero().flatten().tolist() == units
            close(image[units], rows)


@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_a_resized_image_is_what_the_tower_makes_of_it(impl: str, keep: float) -> None:
    """Its features stand at the places of the full grid that the report names, and holes everywhere else."""
    model, batch = tiny.model("gemma3", impl), tiny.inputs("gemma3", ROWS["gemma3"])
    with torch.no_grad(), foveate.compress(model, foveate.Downsample(keep=keep)) as handle:
        found = tiny.marked(model, batch).pooler_output
        model(**batch)
        visit = handle.report().visits[0]
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    down = len({i // 4 for i in visit.kept[0]})
    across = len(visit.kept[0]) // down
    pixels = resize_images(batch["pixel_values"], down * 2 * tiny.PATCH, across * 2 * tiny.PATCH)
    with torch.no_grad():
        patches = tower(pixels, interpolate_pos_encoding=True).last_hidden_state
        square = patches.view(len(pixels), down, 2, across, 2, -1).mean((2, 4)).flatten(1, 2)
        rows = projector.mm_soft_emb_norm(square) @ projector.mm_input_projection_weight
    for image, kept, expected in zip(found, visit.kept, rows, strict=True):
        assert (~image[:, 0].isnan()).nonzero().flatten().tolist() == list(kept)
        close(image[list(kept)], expected)


@pytest.mark.parametrize("attend", [False, True])
def test_images_with_different_numbers_of_parked_units(impl: str, attend: bool) -> None:
    test_tiles.test_tiles_with_different_numbers_of_parked_units("gemma3", impl, attend)


def test_crops_are_spans() -> None:
    """The whole image, then its crops; every one its own."""
    model, batch = tiny.model("gemma3"), tiny.inputs("gemma3", ROWS["gemma3"])
    with torch.no_grad(), foveate.compress(model, foveate.Stride(layers=(0,))) as handle:
        model(**batch)
        (visit,) = handle.report().visits
    assert visit.shapes == ((4, 4),) * 5
    assert visit.before == (16,) * 5
