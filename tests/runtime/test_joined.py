"""Families whose stock code puts the patches of a token together between the tower and the projector, tile by tile.

Against the stock modules run by hand, one tile at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import pytest
import tiny
import torch
import transformers
from calls import ROWS, close
from packaging.version import Version
from probes.synthetic import Ragged
from test_tiles import Hear
from torch import Tensor

import foveate
from foveate.method import Host, Method, Site
from foveate.tokens import Reduction, Tokens

JOINED = tiny.tiles.JOINED
joined = pytest.mark.parametrize("family", JOINED)


@joined
def test_every_tile_is_a_span(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, Hear()):
        model(**batch)
    (tokens,) = Hear.heard
    assert tokens.spans.shape == ((4, 4),) * 7
    assert tokens.spans.row == (0, 0, 0, 1, 1, 1, 1)


def features_by_hand(
    family: str, model: Any, batch: dict[str, Tensor], keep: list[list[int]], first: int, mid: bool = False
) -> list[Tensor]:
    """Tile by tile: from block ``first`` (after its attention if ``mid``) only the units ``keep``."""
    tower = tiny.tower(model)
    pixels = batch["pixel_values"].flatten(0, -4)
    real = torch.ones(len(pixels), tiny.tiles.SIDE[family] ** 2, dtype=torch.bool)
    if family in tiny.tiles.IDEFICS:
        patches = batch["pixel_attention_mask"].flatten(0, 1)[:, :: tiny.PATCH, :: tiny.PATCH].bool()
        tiles = (pixels != 0).flatten(1).any(1)
        embedded, real, leading = tower.embeddings(pixels[tiles], patches[tiles]), patches[tiles].flatten(1), 0
    else:
        embedded, leading = tower.embeddings(pixels), int(family == "internvl")
    out = []
    for tile, units, seen in zip(embedded, keep, real, strict=True):
        hidden = tile[None]
        side = tiny.tiles.SIDE[family]
        rows = list(range(leading))
        for unit in units:
            y, x = unit // (side // 2) * 2, unit % (side // 2) * 2
            rows += [leading + (y + dy) * side + x + dx for dy in (0, 1) for dx in (0, 1)]
        mask = torch.cat([torch.ones(leading, dtype=torch.bool), seen])[None, None, None]
        for i, block in enumerate(tiny.blocks(model)):
            if i == first and not mid:
                hidden, mask = hidden[:, rows], mask[..., rows]
            attended = hidden + _attention(block, hidden, mask)
            if i == first and mid:
                attended, mask = attended[:, rows], mask[..., rows]
            hidden = attended + _ffn(block, attended)
        norm = next(
            getattr(tower, name) for name in ("layernorm", "post_layernorm", "rms_norm") if hasattr(tower, name)
        )
        row = tiny.projector(model)(norm(hidden)[0, leading:].reshape(len(units), -1))
        if family in tiny.tiles.OVIS:
            words = model.model.vision_tower.head_norm(row).softmax(-1)
            row = words @ model.model.visual_embeddings_table.weight[: words.shape[-1]]
        out.append(row)
    return out


def _attention(block: Any, x: Tensor, mask: Tensor) -> Tensor:
    if hasattr(block, "layer_norm1"):
        mask = mask.expand(-1, -1, x.shape[1], -1)
        if block.self_attn.config._attn_implementation == "eager":
            mask = torch.zeros(()).masked_fill(~mask, torch.finfo(torch.float32).min)
        y: Tensor = block.self_attn(block.layer_norm1(x), attention_mask=mask)[0]
        return y
    if hasattr(block, "rms_norm1"):
        plain: Tensor = block.attention(block.rms_norm1(x))[0]
        return plain
    scaled: Tensor = block.lambda_1 * block.attention(block.layernorm_before(x))[0]
    return scaled


def _ffn(block: Any, x: Tensor) -> Tensor:
    if hasattr(block, "layer_norm2"):
        y: Tensor = block.mlp(block.layer_norm2(x))
        return y
    if hasattr(block, "rms_norm2"):
        plain: Tensor = block.ffn(block.rms_norm2(x))
        return plain
    scaled: Tensor = block.lambda_2 * block.mlp(block.layernorm_after(x))
    return scaled


def check(family: str, found: Any, expected: list[Tensor]) -> None:
    """Features of all tiles: those of the units that were kept, and holes."""
    tiles = torch.cat([part.flatten(0, -2) for part in found]).view(len(expected), -1, found[0].shape[-1])
    for tile, units, rows in zip(tiles, Ragged.kept, expected, strict=True):
        assert (~tile[:, 0].isnan()).nonzero().flatten().tolist() == units
        close(tile[units], rows)


@joined
@pytest.mark.parametrize("mid", [False, True])
@pytest.mark.parametrize("block", [1, 3])
def test_fewer_units(family: str, impl: str, block: int, mid: bool) -> None:
    """Tiles that keep different numbers are what they are alone; what is gone is a hole after the projector."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, Ragged(block=block, mid=mid)) as handle:
        found = tiny.marked(model, batch).pooler_output
        report = handle.report()
    assert len({len(units) for units in Ragged.kept}) > 1
    assert report.flops["projector"] < report.full_flops["projector"]
    with torch.no_grad():
        check(family, found, features_by_hand(family, model, batch, Ragged.kept, block, mid))


@pytest.mark.parametrize("family", tiny.tiles.IDEFICS)
@pytest.mark.parametrize("block", [1, 3])
def test_tiles_that_are_padded(family: str, impl: str, block: int) -> None:
    """Patches that the processor calls padding are tokens, too, and nobody attends to them, however few are left."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    mask = batch["pixel_attention_mask"]
    mask[0, 1, 20:], mask[1, 0, :, 12:], mask[1, 2, 24:, 8:] = 0, 0, 0
    stock = tiny.text_logits(model, batch)
    with torch.no_grad(), foveate.compress(model, Ragged(block=block)):
        found = tiny.marked(model, batch).pooler_output
    with torch.no_grad():
        check(family, found, features_by_hand(family, model, batch, Ragged.kept, block))
    with foveate.compress(model, Keep()):
        assert torch.equal(tiny.text_logits(model, batch), stock)
    with foveate.compress(model, foveate.Downsample(keep=0.5)):  # the mask shrinks with the tiles
        assert tiny.text_logits(model, batch).isfinite().all()


@pytest.mark.parametrize("family", ["internvl", *tiny.tiles.IDEFICS])  # Ovis2 has positions for one size
def test_tiles_that_are_no_squares(family: str) -> None:
    """Stock code puts patches together that are no neighbours, so no token is a place of the image: who needs none, may act."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    for name in {"pixel_values", "pixel_attention_mask"} & {*batch}:
        batch[name] = batch[name].reshape(*batch[name].shape[:-2], 16, 64)
    stock = tiny.text_logits(model, batch)
    with foveate.compress(model, Keep()), pytest.raises(foveate.FoveateError, match=r"16 x 64.*square"):
        model(**batch)
    with foveate.compress(model, foveate.FastV(ratio=1.0)):
        assert torch.equal(tiny.text_logits(model, batch), stock)
    with foveate.compress(model, foveate.Stride(keep=0.5)) as handle:
        assert not torch.equal(tiny.text_logits(model, batch), stock)
        assert handle.report().mean_tokens > 0


def test_features_that_come_as_one_tensor() -> None:
    """Computed beforehand, and handed over without the rest of what the encoder puts out."""
    model, batch = tiny.model("idefics3"), tiny.inputs("idefics3", ROWS["idefics3"])
    if Version("5.24") <= Version(transformers.__version__):
        pytest.skip("stock code announces it, and fails on it: its output asks a tensor for `get`")
    name = next(
        n for n in ("mm_encoder_outputs", "image_hidden_states") if n in signature(type(model.model).forward).parameters
    )
    with torch.no_grad(), foveate.compress(model, foveate.Stride()) as handle:
        expected = model(**batch).logits[:, -1]
        features = model.get_image_features(batch["pixel_values"], batch["pixel_attention_mask"]).pooler_output
        rest = {name: value for name, value in batch.items() if not name.startswith("pixel")}
        close(model(**rest, **{name: torch.cat(list(features))}).logits[:, -1], expected)
        assert handle.report().visits


@dataclass(frozen=True)
class Keep(Method):
    """Keeps everything, at a vision block."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", 1)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return Reduction(torch.arange(len(tokens)), tokens.counts)


def test_internvl_with_an_earlier_layer() -> None:
    """Features of the last block but one: it is the hidden states that are full length again, not the last ones."""
    config = tiny.config("internvl")
    config.vision_feature_layer = -2
    model, batch = tiny.build(config), tiny.inputs("internvl", ROWS["internvl"])
    stock = tiny.text_logits(model, batch)
    with foveate.compress(model, foveate.Stride(keep=1.0) + Keep()):
        assert torch.equal(tiny.text_logits(model, batch), stock)
    with torch.no_grad(), foveate.compress(model, Ragged(block=2)):
        found = tiny.marked(model, batch).pooler_output
    last = model.model.vision_tower.encoder.layer[-1]
    del model.model.vision_tower.encoder.layer[-1]
    with torch.no_grad():
        expected = features_by_hand("internvl", model, batch, Ragged.kept, 2)
    model.model.vision_tower.encoder.layer.append(last)
    check("internvl", found, expected)
    with pytest.raises(foveate.FoveateError, match="0 to 2"):
        foveate.compress(model, Ragged(block=3))
