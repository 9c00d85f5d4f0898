"""One meaning of `keep`: what it says of every method is what `report()` counts, alone and in sums; and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import pytest
import tiny
import torch
from probes.dynamic_ffn import DynamicFfn
from probes.layer_skip import LayerSkip
from probes.snapkv import SnapKV
from probes.synthetic import Skips

import foveate
from foveate import (
    ADSC,
    IPCV,
    LUVC,
    OIM,
    SPU,
    VTW,
    DivPrune,
    DyCoke,
    FastV,
    Host,
    IVCPrune,
    Method,
    QCache,
    Random,
    Signal,
    Site,
    Stride,
    ToMe,
    V2Drop,
)
from foveate.errors import ConfigError, FoveateError
from foveate.handle import host_of
from foveate.method import Unit
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule
from foveate.sums import Composed

HOST = Host("llava", blocks=23, layers=32, has_cls=True)
FAMILIES = ("llava", "qwen2_5_vl")
METHODS = foveate.list_methods()
COUNTING = [name for name, cls in METHODS.items() if cls.unit == "tokens"]
COUNTED = [*COUNTING, "oim+spu", "divprune+fastv", "tome+v2drop", "ipcv+fastv+stride"]
#: methods whose `keep` moves in whole layers
IN_STEPS = ("vtw", "qcache")
#: methods that remove nothing, and so take no `keep`
NOTHING = [name for name, cls in METHODS.items() if cls.unit == "none"]
KEEPING = [name for name in METHODS if name not in NOTHING]
DEPTHS = (6, 9)
ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]
IMAGES = 3


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, int], Any]:
    sizes = [(family, depth) for family in FAMILIES for depth in DEPTHS]
    return {size: tiny.build(tiny.config(size[0], num_hidden_layers=size[1])) for size in sizes}


def skip_without_frames(method: Method, family: str) -> None:
    """Skip where a method compares frames and the model knows none, which `test_every_method_takes_keep_by_name` asks."""
    if family == "llava" and any(part.temporal for part in method.parts()):
        pytest.skip("it compares frames, and this family takes no videos")


def held(model: Any, family: str, method: Method) -> tuple[float, foveate.Report]:
    """The share of the visual tokens that a layer holds on average, as the report says."""
    with foveate.compress(model, method) as handle, torch.no_grad():
        model(**tiny.inputs(family, ROWS), logits_to_keep=1)
        report = handle.report()
    share = report.mean_tokens * len(ROWS) / report.visual_tokens
    assert share == pytest.approx(report.shares["tokens"])
    return share, report


# -- keep is what the report counts (rules 2, 5 and 7) ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", COUNTED)
def test_the_report_counts_keep(models: Any, name: str, family: str) -> None:
    """On a shallow model of the one family and a deep one of the other, by turns."""
    depth = DEPTHS[(COUNTED.index(name) + FAMILIES.index(family)) % 2]
    model = models[family, depth]
    method = foveate.methods.make(name, keep=0.5)
    skip_without_frames(method, family)
    least = method.least(host_of(model))
    for keep in (0.3, 0.5, 0.77):
        if keep < least:
            continue
        share, report = held(model, family, method.with_keep(keep))
        image = report.visual_tokens / IMAGES
        cuts = sum(len(part.sites(host_of(model))) for part in method.parts())
        slack = {"vtw": 0.5 * image / depth}.get(name, max(1.0, 0.5 * cuts if "+" in name else 0))
        if name in ("downsample", "oim", "luvc", "oim+spu"):  # rectangles: the last row or column is there or is not
            slack += 0.5 * max(max(shape) for shape in report.visits[0].shapes)
        assert share * image == pytest.approx(keep * image, abs=slack + 1e-6), keep


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_per_block_of_a_method_that_saves_in_the_tower(family: str) -> None:
    model = tiny.model(family)
    for keep in (0.4, 0.6, 0.9):
        with (
            foveate.compress(model, IPCV(keep=keep, min_tokens=0)) as handle,
            handle.trace() as recorded,
            torch.no_grad(),
        ):
            model(**tiny.inputs(family, ROWS))
            trace, report = recorded(), handle.report()
        (parked,) = (
            visit for visit in report.visits if visit.site.startswith("tower ") and sum(visit.after) < sum(visit.before)
        )
        rows = [block.keys.rows if block.keys else block.rows for block in trace.blocks]
        others = rows[0] - sum(parked.before)  # CLS tokens
        patches = [n - others for n in rows][: host_of(model).blocks]
        assert sum(patches) / len(patches) == pytest.approx(keep * sum(parked.before), abs=IMAGES)
        assert sum(patches) / len(patches) == pytest.approx(report.shares["tower"] * sum(parked.before))


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_a_decode_step_reads(family: str) -> None:
    model = tiny.model(family)
    for keep in (0.3, 0.6, 0.9):
        with foveate.compress(model, DyCoke(ratio=1.0, decode_ratio=keep, layer=2)) as handle, torch.no_grad():
            model.generate(**tiny.inputs(family, ROWS), max_new_tokens=3, do_sample=False)
            report = handle.report()
        (visit,) = report.visits
        layers = host_of(model).layers
        mean = (2 + (layers - 2) * sum(visit.after) / sum(visit.before)) / layers
        assert mean == pytest.approx((2 + (layers - 2) * keep) / layers, abs=IMAGES / sum(visit.before))
        assert mean == pytest.approx(report.shares["decode"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "least"),
    [(SnapKV(), 0.0), (SnapKV(layers=(1, 2)), 4 / 6), (IVCPrune(), 0.0), (QCache(), 7 / 12)],
    ids=["snapkv", "snapkv in two layers", "ivcprune", "qcache"],
)
def test_bytes_that_the_cache_holds_after_the_prompt(family: str, method: Method, least: float) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 6]])
    host, visual = host_of(model), int(tiny.visual_mask(family, batch).sum())
    text = batch["input_ids"].shape[1] - visual
    assert method.least(host) == pytest.approx(least)
    for keep in (0.3, 0.6, 0.75, 1.0):
        if keep < least:
            continue
        with foveate.compress(model, method.with_keep(keep)) as handle, torch.no_grad():
            cache = model(**batch).past_key_values
            report = handle.report()
        tensors = [x for entry in cache.layers for x in (entry.keys, entry.values)]
        of_visual = sum(x.nbytes // x.shape[2] * (x.shape[2] - text) for x in tensors)
        token = tensors[1].nbytes // tensors[1].shape[2]
        held = of_visual / (token * visual * len(tensors))
        assert held == pytest.approx(report.shares["cache"])
        step = 0.5 / 2 / len(cache.layers) if method.name() == "qcache" else 1 / visual  # half of a layer's keys
        assert held == pytest.approx(keep, abs=step + 1e-6)
        assert method.with_keep(keep).mean(host) == pytest.approx(keep, abs=step + 1e-6)
    with pytest.raises(ConfigError, match=f"{least:.4g} is the least") if least else nullcontext():
        method.with_keep(least / 2).sites(host)


@contextmanager
def rows_of_ffns(model: Any) -> Iterator[list[int]]:
    """How many rows each FFN of the language model is given."""
    found: list[int] = []
    handles = [
        layer.mlp.register_forward_pre_hook(lambda module, args: found.append(args[0].shape[:-1].numel()))
        for layer in tiny.lm(model).layers
    ]
    yield found
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "least"),
    [(Skips(), 0.0), (Skips(first=2), 1 / 3), (LayerSkip(), 4 / 6), (DynamicFfn(), 4 / 6)],
    ids=["skips", "skips from layer 2 on", "layer_skip", "dynamic_ffn"],
)
def test_work_of_visual_tokens_in_ffns(family: str, method: Method, least: float) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 6]])
    host, visual = host_of(model), int(tiny.visual_mask(family, batch).sum())
    text = batch["input_ids"].shape[1] - visual
    assert method.least(host) == pytest.approx(least)
    for keep in (0.4, 0.7, 0.9, 1.0):
        if keep < least:
            continue
        with foveate.compress(model, method.with_keep(keep)) as handle, torch.no_grad(), rows_of_ffns(model) as rows:
            model(**batch)
            report = handle.report()
        work = sum(n - text for n in rows) / visual / len(rows)
        if isinstance(method, DynamicFfn):  # whose FFNs see the text alone, and visual tokens in a copy of some weights
            ffn = 3 * 2 * tiny.lm(model).layers[0].mlp.down_proj.weight.numel()
            work = 1 - (sum(report.full_layer_flops) - sum(report.layer_flops)) / (ffn * visual * len(rows))
        assert work == pytest.approx(report.shares["compute"])
        assert work == pytest.approx(keep, abs=1 / visual + 1e-6)
        assert method.with_keep(keep).mean(host) == pytest.approx(keep)
    with pytest.raises(ConfigError, match=f"{least:.4g} is the least") if least else nullcontext():
        method.with_keep(least / 2).sites(host)


def test_one_cut_by_the_formula() -> None:
    (site,) = FastV(keep=0.5).sites(HOST)
    assert (site.layer, site.keep) == (2, pytest.approx((0.5 * 32 - 2) / 30))
    (site,) = FastV(keep=0.5, layer=8).sites(HOST)
    assert (site.layer, site.keep) == (8, pytest.approx((0.5 * 32 - 8) / 24))
    deep = Host("llava", 23, layers=24, has_cls=True, depth=32)  # eight attend to the keys of earlier ones, and count
    assert FastV(keep=0.5).sites(deep)[0].keep == pytest.approx(14 / 30)


def test_a_sum_has_one_power_on_all_parts_that_count_tokens() -> None:
    first, second, third = (IPCV(ratio=0.5) + DivPrune(keep=0.8) + FastV()).with_keep(0.3).resolve(HOST).parts()
    assert first == IPCV(ratio=0.5)
    ((layer, ratio),) = third.shares(HOST).stages
    assert second.keep is not None
    power = torch.tensor([second.keep, ratio]).log() / torch.tensor([0.8, 0.5]).log()
    assert layer == 2
    assert power[0] == pytest.approx(power[1])
    assert second.keep * (2 + 30 * ratio) / 32 == pytest.approx(0.3)
    (*_, site) = (IPCV() + FastV()).with_keep(0.5).sites(HOST)
    assert (site.layer, site.keep) == (2, pytest.approx(14 / 30))


def test_parts_of_a_sum_have_their_own_keep() -> None:
    both = ToMe(keep=0.7) + FastV(keep=0.5)
    assert both.resolve(HOST).parts() == both.parts()
    assert both.shares(HOST).mean(32) == pytest.approx(0.35)
    nested = (ToMe() + FastV()).with_keep(0.5) + VTW()
    assert nested.terms()[0].keep == 0.5
    assert [part.name() for part in nested.resolve(HOST).parts()] == ["tome", "fastv", "vtw"]


# -- the paper's setting (rule 1) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "native", "mean"),
    [
        (FastV(), FastV(layer=2, ratio=0.5), 0.53125),
        (Random(), Random(layer=0, ratio=0.5), 0.5),
        (Stride(), Stride(layers=(0,), ratio=0.5), 0.5),
        (VTW(), VTW(layer=15), 15 / 32),
        (V2Drop(), V2Drop(layers=(3, 17, 22), ratios=(0.5, 0.5, 0.0)), (3 + 14 / 2 + 5 / 4) / 32),
        (SPU(), SPU(schedule="early", ratio=0.5), 31 / 64),
        (LUVC(), OIM(keep=0.8) + SPU(ratio=0.7), 0.56 * 31 / 32),
        (ADSC(), ADSC(keep=1 / 3), 1 / 3),
        (IPCV(), IPCV(ratio=0.35, block=7, stabilise=3), (10 + 13 * 0.35) / 23),
        (DyCoke(), DyCoke(layer=3, decode_ratio=0.3), 1.0),
        (QCache(), QCache(ratio=0.3), (10 + 22 / 2) / 32),
    ],
    ids=lambda method: method.name() if isinstance(method, Method) else "",
)
def test_unset_is_the_papers_setting(method: Method, native: Method, mean: float) -> None:
    assert method.keep is None
    assert list(method.sites(HOST)) == list(native.sites(HOST))
    assert method.mean(HOST) == pytest.approx(mean)


# -- places (rule 3) ----------------------------------------------------------------------------------------------------


def test_a_default_place_moves_earlier_and_a_given_one_does_not() -> None:
    assert FastV(keep=2 / 32).sites(HOST)[0].layer == 2
    assert FastV(keep=0.05).sites(HOST)[0].layer == 1
    assert [site.layer for site in V2Drop(keep=0.08).sites(HOST)] == [1, 7, 9]
    for method, least in ((FastV(keep=0.05, layer=2), 0.0625), (V2Drop(keep=0.05, layers=(4, 8)), 0.125)):
        with pytest.raises(ConfigError, match=f"{least} is the least"):
            method.sites(HOST)


@pytest.mark.parametrize("name", KEEPING)
def test_a_model_with_fewer_layers_than_the_paper_needs(name: str) -> None:
    """Cuts are at layers that it has, and keep what is asked for; or a sentence says that it cannot be."""
    for layers, keep in product((1, 2, 3, 4), (None, 0.3, 0.6, 1.0)):
        host = Host("llava", blocks=4, layers=layers, has_cls=True)
        method = METHODS[name](keep=keep)
        sites: Sequence[Site] = []
        refusal = ""
        try:
            sites = method.sites(host)
        except FoveateError as error:
            refusal = str(error)
        if refusal:
            assert re.search(
                "the least|at least two decoder layers|the model has 1|decode sites start at layer 1", refusal
            )
            continue
        assert all(0 <= site.layer < layers for site in sites if site.at in ("decoder", "decode"))
        if keep is not None:
            assert method.mean(host) == pytest.approx(keep, abs=0.5 / layers + 1e-9 if name in IN_STEPS else 1e-9)


def test_a_cut_at_a_layer_that_is_not_there() -> None:
    assert FastV().sites(Host("llava", 4, layers=2, has_cls=True))[0].layer == 1  # the paper's is 2
    for method in (FastV(schedule=((2, 0.5), (40, 0.1))), FastV(layer=40), V2Drop(layers=(3, 40), keep=0.5)):
        with pytest.raises(FoveateError, match="there is no decoder layer 40: the model has 32"):
            method.sites(HOST)
    with pytest.raises(ConfigError, match="there is no layer 40 to cut before: the model has 32"):
        Schedule(((2, 0.5), (40, 0.1))).at_mean(0.5, 32)
    with pytest.raises(ConfigError, match="one ratio per layer: there are 2 layers and 3 ratios"):
        Schedule.scaled((1, 2), (0.5, 0.5, 0.5), of=4, to=8)
    with pytest.raises(ConfigError, match="one ratio per layer: there are 2 layers and 1 ratios"):
        V2Drop(layers=(1, 2), ratios=(0.5,)).sites(HOST)


@dataclass(frozen=True)
class Both(DecoderPruner):
    """Test only: a method with all options of its base."""

    layer: int | None = None
    layers: tuple[int, ...] | None = None
    ratio: float | None = None
    ratios: tuple[float, ...] | None = None


@pytest.mark.parametrize("given", [{"layer": 1, "layers": (1, 2)}, {"ratio": 0.5, "ratios": (0.5, 0.2)}], ids=str)
def test_one_and_several_are_not_both_given(given: dict[str, Any]) -> None:
    one, several = given
    with pytest.raises(ConfigError, match=f"both: give either `{one}` or `{several}`"):
        Both(**given)


def test_cuts_move_to_the_first_layer_at_which_their_signals_exist() -> None:
    def first(*asked: Signal | str) -> int:
        class Asking(Both):
            signals = asked

        return Asking().first(HOST)

    assert first() == first("next_row", "text") == first("hidden", Signal("hidden", 5, at="tower")) == 0
    assert first("last_row") == first("residual", "next_row") == first(Signal("keys", layer=0)) == 1
    assert first("last_row", Signal("keys", layer=4)) == first(Signal("hidden", layer=-28)) == 5


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (FastV(keep=0.02), "fastv: keep=0.02 cannot be reached.*0.03125 is the least"),
        (OIM(keep=0.2), "0.25 is the least"),
        (ToMe(keep=1e-8), "is the least"),
        (IPCV(keep=0.2, block=7), r"of 23 vision blocks the first 7 .* 0.3043 is the least"),
        ((FastV(layer=4) + Stride(layers=(5,))).with_keep(0.1), "fastv . stride: 0.125 is the least"),
        ((IPCV() + SnapKV()).with_keep(0.5), r"no part of the sum counts these: ipcv \(tower\), snapkv \(cache\)"),
    ],
    ids=repr,
)
def test_out_of_reach(method: Method, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        method.sites(HOST)


@dataclass(frozen=True)
class Masks(Method):
    """Test only: a method that removes nothing."""

    unit: ClassVar[Unit] = "none"


@pytest.mark.parametrize(
    ("cls", "options", "sentence"),
    [
        (FastV, {"keep": 0.5, "ratio": 0.5}, "fastv: keep=0.5 and ratio=0.5 both say how much"),
        (V2Drop, {"keep": 0.5, "ratios": (0.5, 0.0)}, r"keep=0.5 and ratios=\(0.5, 0.0\)"),
        (VTW, {"keep": 0.5, "layer": 3}, "keep=0.5 and layer=3"),
        (LUVC, {"keep": 0.5, "merge": 0.8, "ratio": 0.7}, "keep=0.5 and ratio=0.7, merge=0.8"),
        (IPCV, {"keep": 0.5, "ratio": 0.3}, "keep=0.5 and ratio=0.3"),
        (DyCoke, {"keep": 0.5, "ratio": 0.3}, "keep=0.5 and ratio=0.3"),
        (DyCoke, {"keep": 0.5, "exact": True}, "exact=True has counts of its own, not keep=0.5: give ratio"),
        (FastV, {"schedule": "halving", "layer": 3}, "either `schedule` or `layer`"),
        (FastV, {"keep": 1.5}, "keep=1.5 is not a ratio"),
        (Masks, {"keep": 0.5}, "masks removes nothing that a share could be of"),
    ],
)
def test_options_that_do_not_go_together(cls: type[Method], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        cls(**options)


# -- everything and nothing (rule 8) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*KEEPING, "luvc+v2drop", "tome+vtw"])
def test_everything_is_the_stock_model(name: str, family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    skip_without_frames(foveate.methods.make(name), family)
    with torch.no_grad():
        stock = model(**batch).logits
        with foveate.compress(model, name, keep=1.0):
            assert torch.equal(model(**batch).logits, stock)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*COUNTING, "tome+fastv"])
def test_nothing_is_withdrawn_at_the_earliest_site(name: str, family: str) -> None:
    method = foveate.methods.make(name, keep=0.0)
    skip_without_frames(method, family)
    share, report = held(tiny.model(family), family, method)
    assert share == 0
    assert sum(report.visits[-1].after) == 0


@pytest.mark.parametrize("name", COUNTING)
def test_a_little_leaves_a_token_of_every_image(name: str) -> None:
    family = "qwen2_5_vl"
    model = tiny.model(family)
    method = foveate.methods.make(name)
    share = max(method.least(host_of(model)) * 1.001, 1e-6)
    with foveate.compress(model, method.with_keep(share)) as handle, torch.no_grad():
        model(**tiny.inputs(family, ROWS))
        visits = handle.report().visits
        sites = method.with_keep(share).resolve(host_of(model)).sites(host_of(model))
    exact_zero = {str(site) for site in sites if site.keep == 0}
    for visit in visits:
        assert visit.site in exact_zero or all(visit.after)


# -- by name ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEEPING)
def test_every_method_takes_keep_by_name(name: str) -> None:
    for family in FAMILIES:
        model = tiny.model(family)
        keep = max(0.5, METHODS[name]().least(host_of(model)))
        if family == "llava" and METHODS[name](keep=keep).temporal:
            with pytest.raises(FoveateError, match=r"compares frames of one video, and in 'llava' .* is known nowhere"):
                foveate.compress(model, name, keep=keep)
            continue
        with foveate.compress(model, name, keep=keep) as handle:
            assert handle.method == METHODS[name](keep=keep)
            assert "keep=0.5" in repr(handle)


def test_a_schedule_by_name_by_pairs_and_in_json() -> None:
    for method in (
        FastV(schedule="halving"),
        FastV(schedule=((2, 0.5), (5, 0.0)), keep=0.4),
        Random(schedule="linear"),
    ):
        assert foveate.method_from_dict(method.to_dict()) == method
    assert SPU(schedule="halving", ratio=0.25).sites(HOST)[0].keep == pytest.approx(0.25)
    assert FastV(schedule="halving", keep=0.4).mean(HOST) == pytest.approx(0.4)
    with pytest.raises(FoveateError, match="schedule"):
        foveate.method_from_dict({"method": "fastv", "schedule": "sometimes"})
    with pytest.raises(ConfigError, match="at least one"):
        Composed(())
