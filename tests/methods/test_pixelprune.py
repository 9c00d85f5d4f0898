"""PixelPrune: predictions by a plain loop, golden values, and images whose patches are equal, on several families."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import PixelPrune, Site
from foveate.errors import ConfigError
from foveate.ops.predict import surprise


def by_hand(x: dict[tuple[int, int], torch.Tensor], metric: str, threshold: float) -> dict[tuple[int, int], float]:
    """How far each patch of an image is from what its neighbours foretell, in raster order."""

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        d = (a - b).abs()
        return float({"max": d.max(), "mae": d.mean(), "rmse": (d**2).mean().sqrt()}[metric])

    def near(a: torch.Tensor, b: torch.Tensor) -> bool:
        away = apart(a, b)
        return away == 0 or away < threshold

    told, found = dict(x), {}
    for y, c in sorted(x):
        left, up, corner = told.get((y, c - 1)), told.get((y - 1, c)), told.get((y - 1, c - 1))
        edge = (
            corner is not None and left is not None and up is not None and near(corner, left) and not near(corner, up)
        )
        by = up if left is None or edge else left
        found[y, c] = float("inf") if by is None else apart(x[y, c], by)
        if by is not None and near(x[y, c], by):
            told[y, c] = by
    return found


@settings(max_examples=60, deadline=None)
@given(
    grids,
    st.integers(0, 1000),
    st.sampled_from(["max", "mae", "rmse"]),
    st.sampled_from([0.0, 0.3, 1.5]),
    st.booleans(),
)
def test_predictions_by_loops(grid: Any, seed: int, metric: Any, threshold: float, some: bool) -> None:
    """Of few different patches, in any order; some may have left already."""
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    kinds = torch.randn(4, 5, generator=generator)
    x = kinds[torch.randint(0, 4, (len(tokens),), generator=generator)]
    x = x + 0.2 * torch.randint(0, 2, (len(tokens), 1), generator=generator)
    if some:
        reduction = tokens.keep_mask(torch.rand(len(tokens), generator=generator) < 0.8)
        tokens, x = tokens.select(reduction.keep, reduction.counts), x[reduction.keep]
    found = surprise(x, tokens.index, tokens.counts, tokens.spans.shape, metric, threshold)
    start = 0
    for n, (_, width) in zip(tokens.counts, tokens.spans.shape):
        places = [(i // width, i % width) for i in tokens.index[start : start + n].tolist()]
        expected = by_hand(dict(zip(places, x[start : start + n])), metric, threshold)
        assert found[start : start + n].tolist() == pytest.approx([expected[p] for p in places], abs=1e-6)
        start += n


def test_golden_values() -> None:
    """Two blocks of colour: each row has one patch where the colour changes, and below an edge the upper one foretells."""
    tokens = tokens_at([(1, 3, 4)], 0)
    tokens = tokens.select(tokens.index.argsort(), tokens.counts)
    x = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0.9]]).view(12, 1).expand(-1, 3)
    tokens = replace(tokens, signals={"patches": x})
    stays = lambda **how: PixelPrune(**how).reduce(tokens, Site.tower(0)).keep.tolist()  # noqa: E731
    assert stays() == [0, 2, 11]
    assert stays(threshold=0.2) == [0, 2]
    assert stays(threshold=2.0) == [0]
    assert PixelPrune(keep=0.5).reduce(tokens, Site.tower(0, 0.5)).keep.tolist() == [0, 1, 2, 3, 4, 11]


@pytest.mark.parametrize("family", ["llava", "llava_siglip", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3"])
def test_flat_images_leave_one_token(family: str) -> None:
    """Of noise everything stays, and that is stock; tokens leave before the tower's blocks and the language model."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    with torch.no_grad():
        stock = model(**batch).logits
        with foveate.compress(model, PixelPrune()) as handle:
            assert torch.equal(model(**batch).logits, stock)
            model(**batch | {"pixel_values": torch.ones_like(batch["pixel_values"])})
            report = handle.report()
    assert set(report.visits[0].after) == {1}
    assert report.flops["tower"] < 0.6 * report.full_flops["tower"]


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"threshold=-1.0 is not a difference: give 0.0 or more"):
        PixelPrune(threshold=-1.0)
    with pytest.raises(ConfigError, match="both say how much stays"):
        PixelPrune(threshold=0.1, keep=0.5)
