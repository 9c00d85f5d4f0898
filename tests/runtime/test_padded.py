"""Towers that pad images of all sizes to one number of rows, and pool the patches of a token themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, video_rows
from plans import PLANS
from probes.synthetic import DropBlocks, Ragged
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_torchvision_available

import foveate
from foveate import Host, Method, Reduction, Site, Tokens
from foveate.errors import InputError
from foveate.models import list_families

NAME = "gemma4"
UNIT = 4


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return tiny.inputs(NAME, ROWS[NAME])


def images_of(batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Patches and positions of each image, without padding."""
    there = (batch["image_position_ids"] >= 0).all(-1)
    return [(x[here], at[here]) for x, at, here in zip(batch["pixel_values"], batch["image_position_ids"], there)]


def rows_of(units: Sequence[int], at: Tensor) -> list[int]:
    """Patches of some units of an image whose patches are ``at``."""
    width = int(at[:, 0].max()) + 1
    corners = [(unit // (width // 2) * 2, unit % (width // 2) * 2) for unit in units]
    return sorted((y + dy) * width + x + dx for y, x in corners for dy in (0, 1) for dx in (0, 1))


def by_hand(model: Any, image: tuple[Tensor, Tensor], units: Sequence[int], first: int, mid: bool = False) -> Tensor:
    """Features of an image alone, of which block ``first`` (after its attention if ``mid``) and what follows see units."""
    tower, (pixels, at) = tiny.tower(model), image
    hidden = tower.patch_embedder(pixels[None], at[None], torch.zeros(1, len(at), dtype=torch.bool))
    rows = rows_of(units, at)
    for i, block in enumerate(tower.encoder.layers):
        if i == first and not mid:
            hidden, at = hidden[:, rows], at[rows]
        rotary = tower.encoder.rotary_emb(hidden, at[None])
        seen = block.self_attn(block.input_layernorm(hidden), position_embeddings=rotary, position_ids=at[None])[0]
        hidden = hidden + block.post_attention_layernorm(seen)
        if i == first and mid:
            hidden, at = hidden[:, rows], at[rows]
        hidden = hidden + block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(hidden)))
    unit = at[:, 1] // 2 * 1000 + at[:, 0] // 2
    pooled = torch.stack([hidden[0, unit == u].mean(0) for u in unit.unique()])
    features: Tensor = tiny.base(model).embed_vision(pooled * math.sqrt(hidden.shape[-1]))
    return features


def encode(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Features of each image; without those that have left, where there is no prompt for them."""
    if "input_ids" in batch:
        return list(tiny.marked(model, batch).pooler_output)
    return list(model.get_image_features(batch["pixel_values"], batch["image_position_ids"]).pooler_output)


def test_by_hand_is_stock(impl: str, batch: dict[str, Tensor]) -> None:
    model = tiny.model(NAME, impl)
    with torch.no_grad():
        for image, features in zip(images_of(batch), encode(model, batch), strict=True):
            close(by_hand(model, image, range(len(features)), 0), features)


@pytest.mark.parametrize("mid", [False, True])
@pytest.mark.parametrize("block", [0, 1, 3])
@pytest.mark.parametrize("rows", [72, 64, 96])
def test_fewer_units(impl: str, batch: dict[str, Tensor], block: int, mid: bool, rows: int) -> None:
    """Images that keep different numbers are what they are alone, however much padding comes with them."""
    model = tiny.model(NAME, impl)
    pad = (0, 0, 0, rows - 72)
    batch["pixel_values"] = torch.nn.functional.pad(batch["pixel_values"], pad)
    batch["image_position_ids"] = torch.nn.functional.pad(batch["image_position_ids"], pad, value=-1)
    with torch.no_grad(), foveate.compress(model, Ragged(block=block, mid=mid)) as handle:
        found = encode(model, batch)
        model(**batch)
        report = handle.report()
    assert len({len(units) for units in Ragged.kept}) > 1
    assert report.flops["projector"] < report.full_flops["projector"]
    with torch.no_grad():
        for image, units, features in zip(images_of(batch), Ragged.kept, found, strict=True):
            assert (~features[:, 0].isnan()).nonzero().flatten().tolist() == units
            close(features[units], by_hand(model, image, units, block, mid))


@dataclass(frozen=True)
class Last(Method):
    """Test only: every third unit, with every signal, at the tower's output."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower_output", signals=("keys", "values", "received", "residual"))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        assert all(len(x) == len(tokens) for x in (tokens.keys, tokens.values, tokens.received, tokens.residual))
        Last.received = tokens.received  # type: ignore[attr-defined]
        return tokens.keep_mask(tokens.index % 3 == 0)


def test_at_the_end_of_the_tower(impl: str, batch: dict[str, Tensor]) -> None:
    """What stays is as it was; padding neither asks nor is asked."""
    model = tiny.model(NAME, impl)
    with torch.no_grad():
        stock = encode(model, batch)
        with foveate.compress(model, Last()):
            for ours, theirs in zip(encode(model, batch), stock, strict=True):
                assert torch.equal(ours[:, 0].isnan(), torch.arange(len(ours)) % 3 > 0)
                close(ours[::3], theirs[::3])
            together = Last.received.split([len(features) for features in stock])  # type: ignore[attr-defined]
            for i, received in enumerate(together):
                alone = {name: batch[name][i : i + 1] for name in ("pixel_values", "image_position_ids")}
                size = len(images_of(batch)[i][0])
                encode(model, {name: value[:, :size] for name, value in alone.items()})
                close(Last.received, received)  # type: ignore[attr-defined]


@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_native_downsample_is_a_smaller_image(keep: float) -> None:
    """As stock gives for the smaller image and its shorter prompt, where no window counts the places in between."""
    model = tiny.build(tiny.config(NAME, sliding_window=64))
    batch = tiny.inputs(NAME, [[3, (8, 8), 5, (4, 12), 2]])
    with torch.no_grad(), foveate.compress(model, foveate.Downsample(keep=keep, positions="native")) as handle:
        ours = model(**batch).logits[0, -1]
        visit = handle.report().visits[0]
    grids = []
    for kept, (_, width) in zip(visit.kept, visit.shapes, strict=True):
        height = len({i // width for i in kept})
        grids.append((1, height, len(kept) // height))
    assert [h * w for _, h, w in grids] == list(visit.after)
    args = (batch["pixel_values"], batch["image_position_ids"])
    resize = list_families()[NAME].tower.resize
    assert resize is not None
    _, small = resize(model.config, args, {}, grids)
    keep_place = torch.ones_like(batch["input_ids"][0], dtype=torch.bool)
    places = tiny.visual_mask(NAME, batch)[0].nonzero().flatten().split(list(visit.before))
    for place, (_, h, w) in zip(places, grids, strict=True):
        keep_place[place[h * w :]] = False
    shorter = {name: batch[name][:, keep_place] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    shorter |= {"pixel_values": small["pixel_values"], "image_position_ids": small["pixel_position_ids"]}
    with torch.no_grad():
        close(ours, model(**shorter).logits[0, -1])


def test_images_as_the_processor_makes_them() -> None:
    """It makes them larger, and pads all of them to the most patches that it may make."""
    images = [torch.randint(0, 255, (3, *size), dtype=torch.uint8).numpy() for size in ((50, 64), (90, 30), (32, 32))]
    batch = dict(tiny.processor(NAME).image_processor(images, return_tensors="pt"))
    sizes = batch["num_soft_tokens_per_image"].tolist()
    assert batch["pixel_values"].shape[1] == 70 * UNIT > max(sizes) * UNIT
    model = tiny.model(NAME)
    with torch.no_grad(), foveate.compress(model, Ragged(block=1)):
        found = encode(model, batch)
        for image, units, features in zip(images_of(batch), Ragged.kept, found, strict=True):
            close(features, by_hand(model, image, units, 1))


@pytest.mark.skipif(not is_torchvision_available(), reason="its processor of videos wants torchvision")
def test_videos_as_the_processor_makes_them() -> None:
    from transformers.models.gemma4.video_processing_gemma4 import Gemma4VideoProcessor

    process = Gemma4VideoProcessor(
        patch_size=tiny.PATCH, pooling_kernel_size=2, max_soft_tokens=70, do_sample_frames=False
    )
    made: Any = process([torch.randint(0, 255, (2, 3, 40, 64), dtype=torch.uint8)], return_tensors="pt")
    n = int(made.pop("num_soft_tokens_per_video")[0])
    made = {name: value for name, value in made.items() if isinstance(value, Tensor)}
    ids = torch.tensor([[20, *(9, *[tiny.VIDEO_TOKEN] * n, 10) * 2, 30, 31]])
    made |= dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=2 * (ids == tiny.VIDEO_TOKEN).int()
    )
    model = tiny.model(NAME)
    stock = tiny.text_logits(model, made)
    with foveate.compress(model, DropBlocks(keep=1.0)):
        assert torch.equal(tiny.text_logits(model, made), stock)
    with foveate.compress(model, DropBlocks()) as handle:
        assert tiny.text_logits(model, made).isfinite().all()
        assert handle.report().visits[0].before == (n, n)


def test_resizing_to_the_same_size_changes_nothing(batch: dict[str, Tensor]) -> None:
    model = tiny.model(NAME)
    args = (batch["pixel_values"], batch["image_position_ids"])
    spec = list_families()[NAME].tower
    assert spec.resize is not None
    _, same = spec.resize(model.config, args, {}, spec.grid(model.config, args, {}))
    for (x, at), (y, there) in zip(
        images_of(batch), images_of({**same, "image_position_ids": same["pixel_position_ids"]}), strict=True
    ):
        close(x, y, 1e-4)
        assert torch.equal(at, there)


@pytest.mark.parametrize("plan", ["cascade", "tome", "blocks", "park", "native", "luvc"])
def test_standardised_and_clipped(batch: dict[str, Tensor], plan: str) -> None:
    """Of larger models: features are shifted and scaled where they are holes, too, and linear layers clip what they get."""
    config = tiny.config(NAME)
    config.vision_config.standardize = config.vision_config.use_clipped_linears = True
    model = tiny.build(config)
    with torch.no_grad():
        for name, buffer in tiny.tower(model).named_buffers():
            if name.startswith("std_"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith(("_min", "_max")):
                buffer.fill_(-6.0 if name.endswith("_min") else 6.0)
        stock = model(**batch).logits
        with foveate.compress(model, foveate.Stride(keep=1.0) + DropBlocks(keep=1.0)):
            assert torch.equal(model(**batch).logits, stock)
        with foveate.compress(model, PLANS[plan]):
            together = model(**batch).logits
            for i in range(len(ROWS[NAME])):
                alone = tiny.inputs(NAME, ROWS[NAME], only=i)
                text = ~tiny.visual_mask(NAME, alone)[0]
                close(together[i][batch["attention_mask"][i].bool()][text], model(**alone).logits[0][text])


class Flash:
    """Stands for flash attention: masks are keys present, and it is told when it is causal."""

    def __call__(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **how: Any) -> Any:
        assert mask is None or mask.dim() == 2
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        if module.is_causal:
            allowed = allowed.tril(k.shape[2] - q.shape[2])
        allowed = allowed if mask is None else allowed & mask[:, None, None].bool()
        scores = (q @ k.transpose(-1, -2) * how["scaling"]).masked_fill(~allowed, -1e9)
        return (scores.softmax(-1) @ v).transpose(1, 2), None


@pytest.mark.parametrize("plan", ["cascade", "blocks", "visionzip", "park", "renumber"])
def test_flash(batch: dict[str, Tensor], plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose kernels are told which keys are padding, here in the tower."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", Flash())
    options: Any = dict(sliding_window=64, use_bidirectional_attention=None, shared=2)
    logits = []
    for impl in ("sdpa", "flash_attention_2"):
        model = tiny.build(tiny.config(NAME, **options))
        for module in model.modules():
            if getattr(getattr(module, "config", None), "_attn_implementation_internal", None) is not None:
                module.config._attn_implementation_internal = impl
        with torch.no_grad(), foveate.compress(model, PLANS[plan]):
            logits.append(model(**batch).logits)
    text = ~tiny.visual_mask(NAME, batch) & batch["attention_mask"].bool()
    close(logits[0][text], logits[1][text])


def test_frames_of_a_video_are_images(impl: str) -> None:
    model, batch = tiny.model(NAME, impl), tiny.inputs(NAME, video_rows(NAME))
    with torch.no_grad(), foveate.compress(model, DropBlocks()) as handle:
        model(**batch)
        visits = handle.report().visits
    assert [visit.before for visit in visits] == [(8,), (8, 8, 4, 4)]


@pytest.mark.parametrize("how", ["order", "places"])
def test_patches_in_another_order_are_refused(batch: dict[str, Tensor], how: str) -> None:
    model = tiny.model(NAME)
    places = batch["image_position_ids"]
    batch["image_position_ids"] = places.flip(1) if how == "order" else places[:, :-UNIT]
    with torch.no_grad(), foveate.compress(model, PLANS["blocks"]), pytest.raises(InputError, match="line after line"):
        model(**batch)
