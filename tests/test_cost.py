"""The report: FLOPs by formula against FLOPs counted on the run, bytes against the cache's tensors, and what it says."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import counted
from torch import Tensor, nn
from transformers import Cache
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLVisionBlock

import foveate
from foveate import (
    ADSC,
    IPCV,
    DivPrune,
    Downsample,
    DyCoke,
    FastV,
    Host,
    Method,
    Random,
    Reduction,
    Report,
    Site,
    Stride,
    Tokens,
    ToMe,
    V2Drop,
    VisionZip,
)
from foveate.amounts import scaled
from foveate.cost import _block_flops
from foveate.errors import UnsupportedModelError
from foveate.models import list_families
from foveate.ops import select
from foveate.runtime.trace import BlockTrace, KeyTrace

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]
METHODS = [
    Random(keep=1.0),
    Stride(ratio=0.5, layers=(0, 3)),
    FastV(ratio=0.25),
    V2Drop(),
    ADSC(),
    ADSC(keep=0.4, layers=(2, 3), pattern="checker"),
    foveate.VTW(),
    DivPrune(keep=0.3),
    ToMe(),
    VisionZip(keep=0.4),
    Downsample(),
    foveate.LUVC(),
    foveate.OIM(keep=0.5, positions="renumber"),
    IPCV(stabilise=2),
    IPCV(ratio=0.05, across="budget", min_tokens=0),
    IPCV() + VisionZip(keep=0.4) + FastV(),
    ToMe(keep=0.7) + FastV(layer=3) + foveate.VTW(layer=-2),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: "+".join(p.name() for p in method.parts()))


def bytes_of(cache: Cache) -> int:
    return sum(entry.keys.nbytes + entry.values.nbytes for entry in tiny.entries(cache))


def forward(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Any:
    with torch.no_grad():
        return model(**batch, **options)


def generate(model: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    return model.generate(**batch, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, **options)


def total(flops: dict[str, int]) -> int:
    return sum(flops.values())


# -- FLOPs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [IPCV(min_tokens=0), ToMe(), foveate.VTW(layer=2)], ids=lambda method: method.name())
def test_flops_by_block_and_layer(family: str, method: Method) -> None:
    """They are what makes the difference to the stock model; those of the stock model are the same whoever asks."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with foveate.compress(model, method) as handle:
        forward(model, batch)
        report = handle.report()
    with foveate.compress(model, Random(keep=1.0)) as handle:
        forward(model, batch)
        stock = handle.report()
    saved = {stage: report.full_flops[stage] - report.flops[stage] for stage in report.flops}
    assert sum(report.full_layer_flops) - sum(report.layer_flops) == saved["prefill"]
    if family not in tiny.cpm.FAMILIES:  # whose tower saves in its merger, too
        assert sum(report.full_block_flops) - sum(report.block_flops) == saved["tower"]
    assert report.full_layer_flops == stock.full_layer_flops == stock.layer_flops
    assert report.full_block_flops == stock.full_block_flops == stock.block_flops
    assert len(report.layer_flops) == len(report.layer_tokens)


@dataclass(frozen=True)
class Park(Method):
    """Every second token skips two blocks."""

    unit: str = "merge"  # type: ignore[assignment,misc]

    def sites(self, host: Host) -> Sequence[Site]:
        unit: Any = self.unit
        return [Site("tower", 1, unit=unit, action="park"), Site("tower", 3, unit=unit, action="restore")]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(0.5)
        return Reduction(select.stride(tokens.counts, counts), counts)


@pytest.mark.parametrize("unit", ["merge", "patch"])
def test_flops_of_parking(family: str, impl: str, unit: str) -> None:
    """Fewer tokens in two blocks of the tower, and all of them everywhere else."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS)
    stock = counted(impl, lambda: forward(model, batch))
    with foveate.compress(model, Park(unit=unit)) as handle:
        compressed = counted(impl, lambda: forward(model, batch))
        report = handle.report()
        forward(model, batch)  # a second prompt is counted on its own
        assert (handle.report().flops, handle.report().full_flops) == (report.flops, report.full_flops)
        generate(model, batch)
        assert handle.report().flops["tower"] == report.flops["tower"]
    assert stock == pytest.approx(total(report.full_flops), rel=0.01)
    assert compressed == pytest.approx(total(report.flops), rel=0.01)
    assert report.flops["tower"] < report.full_flops["tower"]
    assert report.flops["prefill"] == report.full_flops["prefill"] > 0
    assert report.layer_tokens == report.full_layer_tokens == (batch["input_ids"].shape[1],) * tiny.LAYERS
    assert report.mean_tokens == report.visual_tokens / len(ROWS)


@pytest.mark.parametrize("method", [IPCV(), FastV(ratio=0.5)])
def test_mean_tokens_are_those_of_a_row_of_any_number_of_beams(family: str, method: Method) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with foveate.compress(model, method) as handle:
        generate(model, batch)
        alone = handle.report().mean_tokens
        with torch.no_grad():
            model.generate(**batch, max_new_tokens=2, do_sample=False, num_beams=2, pad_token_id=0)
        assert alone > 0
        assert handle.report().mean_tokens == pytest.approx(alone)


@pytest.mark.parametrize(("keep", "patches", "expected"), [(0.35, 5120, 0.36), (0.35, 1024, 0.41), (1.0, 5120, 1.0)])
def test_ipcv_in_the_tower_of_a_large_model(keep: float, patches: int, expected: float) -> None:
    """Qwen2-VL-7B's tower: of its 32 blocks 3 are whole and 7 attend to all. By hand, of the stock FLOPs; and as the report
    adds it up, on modules without weights."""
    width, blocks = 1280, 32
    with torch.device("meta"):
        vision = Qwen2VLVisionConfig(embed_dim=width, num_heads=16, mlp_ratio=4, depth=blocks)
        block = Qwen2VLVisionBlock(vision)
    sites = IPCV(ratio=keep).sites(Host("qwen2_vl", blocks, 28, has_cls=False))
    parked = next(site.layer for site in sites if site.action == "park")
    attends = {site.layer for site in sites if site.action == "attend"}
    kept, now = round(keep * patches), 0
    for i in range(blocks):
        trace = BlockTrace(i, kept, kept, [kept], KeyTrace(patches, kept, [patches]) if i in attends else None)
        whole = BlockTrace(i, patches, patches, [patches])
        now += _block_flops(block, list_families()["qwen2_vl"].tower, whole if i < parked else trace)
    square, pairs = width**2, 4 * width
    dense = blocks * (24 * patches * square + patches**2 * pairs)
    attending = 7 * (4 * (patches + kept) * square + 16 * kept * square + patches * kept * pairs)
    assert now == 3 * dense // 32 + attending + 22 * (24 * kept * square + kept**2 * pairs)
    search = 2 * (patches - kept) * kept * width
    assert (now + search) / dense == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("options", [{"num_beams": 2, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize(
    "method", [Stride(), FastV(), VisionZip(keep=0.4), DyCoke(ratio=1.0, decode_ratio=0.5)], ids=lambda m: m.name()
)
def test_flops_of_generate(family: str, impl: str, method: Method, options: dict[str, Any]) -> None:
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS)
    stock = counted(impl, lambda: generate(model, batch, **options))
    with foveate.compress(model, method) as handle:
        compressed = counted(impl, lambda: generate(model, batch, **options))
        report = handle.report()
    assert report.decode_steps == 3
    assert stock == pytest.approx(total(report.full_flops), rel=0.01)
    assert compressed == pytest.approx(total(report.flops), rel=0.01)
    assert report.flops["decode"] < report.full_flops["decode"]


@pytest.mark.parametrize("family", tiny.PACKED)
def test_flops_of_videos(family: str, impl: str) -> None:
    beside: list[tiny.Item] = [] if family in tiny.packed.GLM else [(4, 4)]
    rows: list[list[tiny.Item]] = [[3, (2, 4, 8), 5, *beside, 2], [2, (3, 4, 4), 4]]
    model, batch = tiny.model(family, impl), tiny.inputs(family, rows)
    stock = counted(impl, lambda: forward(model, batch))
    methods = (VisionZip(keep=0.5), Stride(), ToMe(), Downsample())
    for method in methods if family in tiny.WHOLE else methods[:1]:
        with foveate.compress(model, method) as handle:
            compressed = counted(impl, lambda: forward(model, batch))
            report = handle.report()
        assert stock == pytest.approx(total(report.full_flops), rel=0.01)
        assert compressed == pytest.approx(total(report.flops), rel=0.01)


def test_flops_of_a_later_turn() -> None:
    """The report is of the last call: here, a second turn with an image of its own."""
    model, first = tiny.model("llava", "eager"), tiny.inputs("llava", [[3, "image", 5]])
    second = tiny.inputs("llava", [[4, "image", 2]], seed=1)
    second["attention_mask"] = torch.ones(1, first["input_ids"].shape[1] + second["input_ids"].shape[1])
    cache = forward(model, first).past_key_values
    stock = counted("eager", lambda: forward(model, second, past_key_values=cache))
    with foveate.compress(model, FastV()) as handle:
        cache = forward(model, first).past_key_values
        compressed = counted("eager", lambda: forward(model, second, past_key_values=cache))
        report = handle.report()
    assert stock == pytest.approx(total(report.full_flops), rel=0.01)
    assert compressed == pytest.approx(total(report.flops), rel=0.01)
    assert report.kv_bytes == bytes_of(cache)
    assert report.visual_tokens == 36


# -- bytes --------------------------------------------------------------------------------------------------------------


# -- tokens -------------------------------------------------------------------------------------------------------------


def check_counts(report: Report, method: Method, spans: tuple[int, ...]) -> None:
    """Every visit starts with what the one before it left; survivors are tokens of their own span's grid."""
    present = spans
    for visit in report.visits:
        units = {a * b / c for (a, b), c in zip(visit.shapes, spans)}  # patches to a token, where patches are parked
        assert visit.before in (present, tuple(int(max(units)) * n for n in present))
        assert visit.after == tuple(map(len, visit.kept))
        assert all(len(set(kept)) == len(kept) for kept in visit.kept)
        assert all(0 <= i < h * w for kept, (h, w) in zip(visit.kept, visit.shapes) for i in kept)
        present = visit.after
    assert {visit.method for visit in report.visits} <= {part.name() for part in method.parts()}


@every_method
def test_tokens_of_several_rows_and_spans(family: str, method: Method) -> None:
    """One image in the first row and two in the second, counted image by image."""
    model = tiny.model(family)
    if family in tiny.tiles.FAMILIES:
        pytest.skip("other spans in the tower than in the language model: see the next test")
    if family in tiny.cpm.FAMILIES and not tiny.cpm.RAGGED:
        pytest.skip("images of one size only, in this transformers")
    same = tiny.ONE_SIZE.get(family)
    unit = {"llava_pixtral": 1, "minicpmv4_6": 16}.get(family, 4)  # patches
    sizes = (64 // unit, 48 // unit, 32 // unit)
    sizes = sizes if same is None else (same[0] * same[1],) * 3
    images: list[tiny.Item] = [(8, 8), (4, 12), (8, 4)] if same is None else ["image"] * 3
    rows: list[list[tiny.Item]] = [[3, images[0], 5], [2, images[1], 4, images[2], 7]]
    batch = tiny.inputs(family, rows)
    with foveate.compress(model, method) as handle:
        forward(model, batch)
        report = handle.report()
    assert report.visual_tokens == sum(sizes) == int(tiny.visual_mask(family, batch).sum())
    check_counts(report, method, sizes)


@every_method
@pytest.mark.parametrize("family", tiny.tiles.FAMILIES)
def test_tokens_of_tiles_and_views(family: str, method: Method) -> None:
    """Tile by tile in the tower, view by view in the language model; what was cut off or pooled is not counted there."""
    model, batch = tiny.model(family), tiny.inputs(family, tiny.tiles.ROWS[family])
    unpadded = getattr(tiny.processor(family), "_get_unpadded_features", None)
    views = [h * w for image in tiny.tiles.views(family, batch, unpadded) for h, w in image]
    with foveate.compress(model, Arrivals(positions=method.parts()[0].positions) + method) as handle:
        forward(model, batch)
        report = handle.report()
    assert report.visual_tokens == sum(views) == int(tiny.visual_mask(family, batch).sum())
    present: tuple[int, ...] | None = None
    for visit in report.visits:
        if visit.site == "lm_entry" and visit.method == "arrivals":
            assert [h * w for h, w in visit.shapes] == views
            assert all(n <= size for n, size in zip(visit.before, views, strict=True))
            present = visit.before
        elif present is not None:
            assert visit.before == present
            present = visit.after
        assert visit.after == tuple(map(len, visit.kept))
        assert all(len(set(kept)) == len(kept) for kept in visit.kept)
        assert all(0 <= i < h * w for kept, (h, w) in zip(visit.kept, visit.shapes, strict=True) for i in kept)
    assert present is not None


@dataclass(frozen=True)
class Arrivals(Method):
    """Has the report say what arrives at the language model."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry")]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return Reduction(torch.arange(len(tokens)), tokens.counts)


@every_method
def test_mean_tokens(family: str, method: Method) -> None:
    """Visual tokens per row and decoder layer, without padding and text."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with foveate.compress(model, Arrivals(positions=method.parts()[0].positions) + method) as handle:
        forward(model, batch)
        report = handle.report()
    present = report.visual_tokens
    before_lm = [visit for visit in report.visits if not visit.site.startswith("decoder")]
    present = sum(before_lm[-1].after) if before_lm else present
    per_layer = []
    for layer in range(tiny.LAYERS):
        here = [visit for visit in report.visits if visit.site == f"decoder {layer}"]
        present = sum(here[-1].after) if here else present
        per_layer.append(present)
    assert report.mean_tokens == pytest.approx(sum(per_layer) / tiny.LAYERS / len(ROWS))


def test_padding_does_not_eat_the_savings(family: str) -> None:
    """A layer is as wide as its longest row; a short row's padding is no reason to keep it wider."""
    model, batch = tiny.model(family), tiny.inputs(family, [*ROWS, [4]])
    text = [int(n) for n in (batch["attention_mask"] - tiny.visual_mask(family, batch).int()).sum(1)]
    with foveate.compress(model, foveate.VTW(layer=2)) as handle:
        forward(model, batch)
        assert handle.report().layer_tokens[2:] == (max(text),) * (tiny.LAYERS - 2)


# -- the report itself --------------------------------------------------------------------------------------------------


def test_a_report_is_of_the_last_call(family: str) -> None:
    model, batch, text = tiny.model(family), tiny.inputs(family, ROWS), tiny.inputs(family, [[4], [9]])
    with foveate.compress(model, ToMe() + FastV()) as handle:
        reports = []
        for _ in range(2):
            forward(model, batch)
            reports.append(handle.report().to_dict() | {"seconds": None})
        assert reports[0] == reports[1]
        forward(model, text)
        report = handle.report()
    assert report.visual_tokens == report.mean_tokens == 0
    assert report.visits == ()
    assert report.flops == report.full_flops
    assert report.flops["tower"] == report.flops["projector"] == 0
    assert report.flops["prefill"] > 0
    assert report.layer_tokens == report.full_layer_tokens == (9,) * tiny.LAYERS
    assert report.kv_ratio == 1


def test_a_report_before_any_call(family: str) -> None:
    method = FastV()
    with (
        foveate.compress(tiny.model(family), method) as handle,
        pytest.raises(UnsupportedModelError, match="no call of the model has ended"),
    ):
        handle.report()


def test_a_report_after_remove(family: str) -> None:
    model = tiny.model(family)
    handle = foveate.compress(model, FastV())
    forward(model, tiny.inputs(family, ROWS))
    handle.remove()
    with pytest.raises(UnsupportedModelError, match=r"call report\(\) before remove"):
        handle.report()


@pytest.mark.parametrize(
    ("now", "full", "said"),
    [
        (0, 0, "none"),
        (7, 900, "7 of 900 FLOPs"),
        (500, 2_000, "0.5 of 2.0 kFLOPs"),
        (41_000, 887_500_000, "41.0 kFLOPs of 887.5 MFLOPs"),
        (2e12, 30, "2.0 TFLOPs of 30 FLOPs"),
        (662_000_000, 887_500_000, "662.0 of 887.5 MFLOPs"),
        (3.2e12, 8e12, "3.2 of 8.0 TFLOPs"),
        (1e9, 0, "1.0 GFLOPs, the stock model none"),
        (2e18, 2e18, "2,000.0 of 2,000.0 PFLOPs"),
    ],
)
def test_numbers_have_the_prefix_that_suits_them(now: float, full: float, said: str) -> None:
    assert scaled(now, full, "FLOPs") == said


def test_counts_say_what_they_count() -> None:
    """Of what the stock model does not do at all, there is no share."""
    model = tiny.model("qwen2_5_vl")
    with foveate.compress(model, IPCV(block=1, min_tokens=0) + DivPrune()) as handle, torch.inference_mode():
        model(**tiny.inputs("qwen2_5_vl", [["image", 3]]))
        report = handle.report()
    seen = str(report)
    assert re.search(r"tower 1 +ipcv: 48 -> 17 patches\n +tower_output +ipcv: 17 patches -> 12 tokens\n", seen)
    assert re.search(r"lm_entry +divprune: \d+ -> \d+ tokens", seen)
    units = [visit["units"] for visit in report.to_dict()["visits"]]
    assert units == [("patches", "patches"), ("patches", "tokens"), ("tokens", "tokens")]
    assert re.search(r"sites +[\d.]+ k?FLOPs, the stock model none", seen)


def test_without_a_cache_there_is_no_share_of_it() -> None:
    model = tiny.model("llava")
    with foveate.compress(model, FastV()) as handle, torch.inference_mode():
        model(**tiny.inputs("llava", [["image", 3]]), use_cache=False)
        report = handle.report()
    assert report.kv_ratio == 1.0
    assert re.search(r"KV cache +none\n", str(report))


def test_a_notebook_shows_what_the_screen_shows() -> None:
    model = tiny.model("llava")
    with foveate.compress(model, "fastv") as handle, torch.inference_mode():
        model(**tiny.inputs("llava", [["image", 3]]))
        report = handle.report()
    seen = str(report)
    assert "FLOPs" in seen
    assert re.search(r"KV cache +[\d.]+ of [\d.]+ kB", seen)
    words = html.unescape(re.sub("<[^>]*>", " ", report._repr_html_())).split()
    assert words == seen.split()
