"""Families whose features are not the tower's rows: tiles, unpadding, newlines, pooling.

Against plain loops over pixels' worth of coordinates, and against the stock modules run by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import tiny
import torch
from calls import ROWS, close, video_rows
from probes.synthetic import Ragged
from torch import Tensor

import foveate
from foveate.errors import UnsupportedModelError
from foveate.method import Host, Method, Site
from foveate.models import list_families
from foveate.models.family import Arrangement, View
from foveate.tokens import Reduction, Tokens

ANYRES = tiny.tiles.ANYRES
Source = list[tuple[int, float]]  # rows of the tower, and the weight of each


@dataclass(frozen=True)
class Drop(Method):
    """Drops some units, irregularly, before a vision block."""

    block: int = 1
    every: int = 3
    dropped: ClassVar[list[int]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", self.block)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        number = torch.arange(len(tokens))
        type(self).dropped[:] = number[(number * 7 + tokens.segment * 5) % self.every == 0].tolist()
        return tokens.keep_mask((number * 7 + tokens.segment * 5) % self.every != 0)


@dataclass(frozen=True)
class Move(Method):
    """Every second token stands for two, half a cell to the right of its place and a quarter below it."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", 1)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        keep = torch.arange(0, len(tokens), 2)
        counts = tuple(n // 2 for n in tokens.counts)
        coords = tokens.coords[keep] + torch.tensor([0.0, 0.25, 0.5])
        return Reduction(keep, counts, sizes=torch.full((len(keep),), 2.0), coords=coords)


@dataclass(frozen=True)
class Hear(Method):
    """Notes what reaches the language model."""

    heard: ClassVar[list[Tokens]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry")]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        type(self).heard[:] = [tokens]
        return Reduction(torch.arange(len(tokens)), tokens.counts)


def bilinear(size: tuple[int, int], new: tuple[int, int]) -> list[list[tuple[int, int, float]]]:
    """Weights of a bilinear resize without antialiasing, output cell by output cell."""
    cells = []
    for y in range(new[0]):
        for x in range(new[1]):
            at = [min(max((i + 0.5) * n / m - 0.5, 0.0), n - 1.0) for i, n, m in zip((y, x), size, new, strict=True)]
            low = [math.floor(a) for a in at]
            cell: dict[tuple[int, int], float] = {}
            for dy in (0, 1):
                for dx in (0, 1):
                    where = (min(low[0] + dy, size[0] - 1), min(low[1] + dx, size[1] - 1))
                    share = abs(1 - dy - (at[0] - low[0])) * abs(1 - dx - (at[1] - low[1]))
                    cell[where] = cell.get(where, 0.0) + share
            cells.append([(*where, share) for where, share in cell.items() if share > 1e-9])
    return cells


def image_sources(family: str, batch: Any) -> list[list[Source]]:
    """For each image, the source of every feature, in order; an empty one is a newline."""
    side = tiny.tiles.SIDE[family]
    single = [n == 1 for n in batch.get("batch_num_images", [1] * len(batch["image_sizes"])) for _ in range(int(n))]
    images, first = [], 0  # first: tower row where the image begins
    for (height, width), tiled in zip(batch["image_sizes"].tolist(), single, strict=True):
        sources: list[Source] = [[(first + i, 1.0)] for i in range(side * side)]
        first += side * side
        if not tiled:
            images.append([*sources, []])
            continue
        height, width = height // tiny.PATCH, width // tiny.PATCH  # in patches; all of these fit their tiles
        down, across = math.ceil(height / side), math.ceil(width / side)
        top, left = (down * side - height) // 2, (across * side - width) // 2
        rows, columns = down * side - 2 * top, across * side - 2 * left

        def row_at(y: int, x: int, top: int = top, left: int = left, across: int = across, first: int = first) -> int:
            y, x = y + top, x + left
            tile = y // side * across + x // side
            return first + tile * side * side + y % side * side + x % side

        cells = [[(y, x, 1.0)] for y in range(rows) for x in range(columns)]
        new = (rows, columns)
        limit = int(tiny.tiles.ASPECT.split("_")[-1])
        ratio = math.sqrt(rows * columns / (limit * side * side))
        if family == "llava_onevision" and ratio > 1.1:
            new = int(rows // ratio), int(columns // ratio)
            cells = bilinear((rows, columns), new)
        for number, cell in enumerate(cells):
            sources.append([(row_at(y, x), share) for y, x, share in cell])
            if number % new[1] == new[1] - 1:
                sources.append([])
        first += down * across * side * side
        images.append(sources)
    return images


def video_sources(batch: Any) -> list[list[Source]]:
    """The same of each video of LLaVA-OneVision."""
    videos, count = batch["pixel_values_videos"].shape[:2]
    side = tiny.tiles.SIDE["llava_onevision"]
    cells = bilinear((side, side), (math.ceil(side / 2),) * 2)
    found = []
    for v in range(videos):
        start = [(v * count + f) * side * side for f in range(count)]
        found.append([[(s + y * side + x, share) for y, x, share in cell] for s in start for cell in cells] + [[]])
    return found


def combined(rows: Tensor, sources: Sequence[Source], gone: Sequence[int], newline: Tensor) -> Tensor:
    """Features by plain loops: the weighted mean of what is left; NaN where nothing is."""
    out = []
    for source in sources:
        left = [(row, share) for row, share in source if row not in gone]
        left = left if sum(share for _, share in left) > 1e-3 else []
        if not source:
            out.append(newline)
        elif not left:
            out.append(torch.full_like(newline, torch.nan))
        else:
            out.append(sum(share * rows[row] for row, share in left) / sum(share for _, share in left))  # type: ignore[arg-type]
    return torch.stack(out)


def projected(model: Any, call: Any) -> Tensor:
    """Rows of the projector in ``call()``."""
    seen: list[Tensor] = []
    hook = tiny.projector(model).register_forward_hook(lambda module, args, output: seen.append(output))
    call()
    hook.remove()
    (rows,) = seen
    return rows.flatten(0, 1)


def check(found: Tensor, expected: Tensor) -> None:
    hole = expected[:, 0].isnan()
    assert torch.equal(found[:, 0].isnan(), hole)
    close(found[~hole], expected[~hole])


@pytest.mark.parametrize("every", [2, 3, 9])
@pytest.mark.parametrize("family", ANYRES)
def test_features_are_means_of_what_is_left(family: str, every: int) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    features: list[Tensor] = []
    with torch.no_grad(), foveate.compress(model, Drop(every=every)):
        rows = projected(model, lambda: features.extend(tiny.marked(model, batch).pooler_output))
    assert Drop.dropped
    assert rows[Drop.dropped].isfinite().all()
    for found, sources in zip(features, image_sources(family, batch), strict=True):
        check(found, combined(rows, sources, Drop.dropped, model.model.image_newline))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_pooled_videos_are_means_of_what_is_left(every: int) -> None:
    family = "llava_onevision"
    model, batch = tiny.model(family), tiny.inputs(family, video_rows(family))
    videos = {
        name: value for name, value in batch.items() if name not in ("pixel_values", "image_sizes", "batch_num_images")
    }
    features: list[Tensor] = []

    def call() -> None:
        features.extend(tiny.marked(model, videos, "get_video_features").pooler_output)

    with torch.no_grad(), foveate.compress(model, Drop(every=every)):
        rows = projected(model, call)
    for found, sources in zip(features, video_sources(batch), strict=True):
        expected = combined(rows, sources, Drop.dropped, model.model.image_newline)
        check(found, expected[: len(found)])  # older stock code adds the newline later


@pytest.mark.parametrize("family", ANYRES)
def test_where_merged_tokens_end_up(family: str) -> None:
    """Sizes follow the weights; a place moves as it has moved in its tile, as far as cells are apart, within its view."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, Move() + Hear()):
        model(**batch)
    (tokens,) = Hear.heard
    unpadded = tiny.processor(family)._get_unpadded_features
    views = [view for image in tiny.tiles.views(family, batch, unpadded) for view in image]
    assert tokens.spans.shape == tuple(views)
    flat = [source for image in image_sources(family, batch) for source in image if source]
    sizes = [sum(2 * share for row, share in source if row % 2 == 0) for source in flat]
    left = [i for i, size in enumerate(sizes) if size > 0]
    at = 0
    for span, (height, width) in enumerate(views):
        here = [i - at for i in left if at <= i < at + height * width]
        mine = tokens.segment == span
        assert tokens.index[mine].tolist() == here
        close(tokens.sizes[mine], torch.tensor([sizes[at + i] for i in here]))
        source = flat[at]
        down, right = (1.0, 1.0) if len(source) == 1 else _scale(span, views)
        expected = [[min(i // width + 0.25 * down, height - 1), min(i % width + 0.5 * right, width - 1)] for i in here]
        close(tokens.coords[mine][:, 1:], torch.tensor(expected))
        at += height * width


def _scale(span: int, views: list[tuple[int, int]]) -> tuple[float, float]:
    """Cells of a pooled view per patch: the first picture here is the pooled one, 6 x 8 patches; the third 4 x 12."""
    height, width = {1: (6, 8), 5: (4, 12)}[span]
    return views[span][0] / height, views[span][1] / width


@pytest.mark.parametrize("family", ANYRES)
def test_newlines_are_never_dropped(family: str) -> None:
    """Text, as it were: no method sees them, and they stay when every visual token is gone."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    placeholders = int((batch["input_ids"] == tiny.IMAGE_TOKEN[family]).sum())
    visual = int(tiny.visual_mask(family, batch).sum())
    assert visual < placeholders
    with torch.no_grad(), foveate.compress(model, foveate.VTW(layer=2)) as handle:
        model(**batch)
        report = handle.report()
    assert report.visual_tokens == visual
    length = batch["input_ids"].shape[1]
    assert report.layer_tokens == (length, length, *(length - visual,) * (tiny.LAYERS - 2))


def test_spans_of_tiles_and_videos() -> None:
    """Views in the order of the prompt; the frames of a video share a clip."""
    family = "llava_onevision"
    model, batch = tiny.model(family), tiny.inputs(family, video_rows(family))
    with torch.no_grad(), foveate.compress(model, Hear()):
        model(**batch)
    (tokens,) = Hear.heard
    spans = tokens.spans
    assert spans.shape == ((2, 2), (2, 2), (4, 4), (4, 6), (2, 2), (2, 2))
    assert spans.frame == (0, 1, 0, 0, 0, 1)
    assert spans.row == (0, 0, 1, 1, 1, 1)
    assert spans.clip[0] == spans.clip[1] != spans.clip[4] == spans.clip[5]
    assert len(set(spans.clip)) == 4


@dataclass(frozen=True)
class RaggedPark(Ragged):
    """The same, but what is gone comes back two blocks later; the attention in between sees it, if ``attend``."""

    attend: bool = False

    def sites(self, host: Host) -> Sequence[Site]:
        seen = [Site("tower", 1, action="attend")] if self.attend else []
        return [Site("tower", 1, action="park"), *seen, Site("tower", 3, action="restore")]


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("family", tiny.tiles.FAMILIES)
def test_tiles_with_different_numbers_of_parked_units(family: str, impl: str, attend: bool) -> None:
    """A tile is what it is beside others that keep fewer of their units."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, RaggedPark(attend=attend)):
        together = projected(model, lambda: model(**batch))
    kept = [list(units) for units in Ragged.kept]
    assert len({len(units) for units in kept}) > 1
    alone = tiny.inputs(family, ROWS[family], only=0)
    with torch.no_grad(), foveate.compress(model, RaggedPark(attend=attend)):
        rows = projected(model, lambda: model(**alone))
    assert Ragged.kept == kept[: len(Ragged.kept)]
    assert len(rows) < len(together)
    close(rows, together[: len(rows)])


@pytest.mark.parametrize("family", tiny.tiles.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_go_through_what_is_left(family: str, dtype: torch.dtype) -> None:
    """A feature that is half gone, or a hole, is no reason for a gradient that is not finite."""
    rows = video_rows(family) if family in tiny.VIDEO else ROWS[family]
    model, batch = tiny.model(family, fresh=True).to(dtype), tiny.inputs(family, rows)
    with foveate.compress(model, Drop(every=2)):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    found = [p.grad for p in tiny.tower(model).parameters() if p.grad is not None]
    assert len(found) > 10
    assert all(bool(g.isfinite().all()) for g in found)


def test_views_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that says something else than what stock code does is refused, not believed."""
    family = list_families()["llava_next"]
    stock = family.tower.arrangements["get_image_features"]
    wrong = Arrangement(lambda config, call: [[View(4, 4)] for _ in call["image_sizes"]], stock.arrange)
    tower = replace(family.tower, arrangements={"get_image_features": wrong})
    monkeypatch.setitem(list_families(), "llava_next", replace(family, tower=tower))
    model, batch = tiny.model("llava_next", fresh=True), tiny.inputs("llava_next", ROWS["llava_next"])
    expected = tiny.text_logits(model, batch)
    with (
        foveate.compress(model, foveate.Stride()),
        pytest.raises(UnsupportedModelError, match="mend the views of the family"),
    ):
        tiny.text_logits(model, batch)
    assert torch.equal(tiny.text_logits(model, batch), expected)


@pytest.mark.parametrize("family", ANYRES)
def test_the_wrapped_function_is_given_back(family: str) -> None:
    model = tiny.model(family)
    before = dict(vars(model.model))
    with foveate.compress(model, foveate.Stride()):
        assert "get_image_features" in vars(model.model)
    assert vars(model.model).keys() == before.keys()


@pytest.mark.parametrize("family", tiny.tiles.ANYRES)
@pytest.mark.parametrize("states", [False, True])
def test_features_without_names(family: str, states: bool) -> None:
    """`return_dict=False`, where hidden states may come before the features."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    given = {name: batch[name] for name in ("pixel_values", "image_sizes")} | {"output_hidden_states": states}
    with torch.no_grad(), foveate.compress(model, foveate.ToMe()):
        named = model.model.get_image_features(**given).pooler_output
        plain = model.model.get_image_features(**given, return_dict=False)
    assert any(
        isinstance(each, (list, tuple)) and len(each) == 1 and torch.equal(each[0].nan_to_num(), named[0].nan_to_num())
        for each in plain
    )
