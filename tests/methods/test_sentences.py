"""What options, sums and models of the training-free methods cannot be: each is one sentence, before anything has run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS

import foveate
from foveate import (
    ADSC,
    AIR,
    CLSE,
    DART,
    DMLLM,
    EVS,
    LFTR,
    RLT,
    VTCCLS,
    AnchorPrune,
    ApET,
    AutoPrune,
    CDPruner,
    DyCoke,
    DyMU,
    EvoPrune,
    FastV,
    FastVID,
    FlashVID,
    FlowCut,
    FrameFusion,
    GSearch,
    HiPrune,
    HoliTom,
    HoloV,
    IVCPrune,
    Method,
    MMTok,
    MustDrop,
    OTPrune,
    OTTVid,
    ParVTS,
    PixelPrune,
    PruMerge,
    PruneSID,
    PruneVid,
    QCache,
    RedundancyLens,
    SparseVLM,
    VidCom2,
    ViTCoP,
    VLMPruner,
    VScan,
)
from foveate.errors import ConfigError, FoveateError
from foveate.pruners import CachePruner
from foveate.schedule import Schedule

Made = Callable[[], Method]
DECODER, BLOCK = r"no decoder layer {}: the model has 6", r"no vision block {}"
BOTH = "methods of one sum must agree on positions, not .*: give all of them the same"
SAME = "the two layers must hold the same tokens"
FRAMES = "compares frames of one video, and in 'llava' which frames are of one video is known nowhere"
ONE_SAYS = "only one method of a sum can say who sees whom, and {} do: choose one of them"
LEAST = "cannot be reached: .* is the least"


def beyond(cls: Any, option: str, several: bool = False, sentence: str = DECODER) -> list[tuple[Made, str]]:
    """A layer, or a block, that the model does not have, counted from either end."""
    return [
        (lambda n=n: cls(**{option: (n,) if several else n}), sentence.format(n))  # type: ignore[misc]
        for n in (99, -99)
    ]


#: on LLaVA, with the sentence that says what is wrong
REFUSED: list[tuple[Made, str]] = [
    *beyond(DyCoke, "layer"),
    *beyond(VTCCLS, "block", sentence=BLOCK),
    *beyond(VScan, "block", sentence=BLOCK),
    *beyond(QCache, "layers", several=True),
    *beyond(AIR, "layers", several=True),
    *beyond(ParVTS, "layer"),
    *beyond(DMLLM, "layer"),
    *beyond(DMLLM, "last"),
    *beyond(RedundancyLens, "layers", several=True),
    *beyond(RedundancyLens, "hollow_layers", several=True),
    (lambda: VScan(layers=(0, 99)), DECODER.format(99)),
    (lambda: ViTCoP(layers=(0, 2, 99)), DECODER.format(99)),
    (lambda: HoliTom(layers=(0, 99)), DECODER.format(99)),
    (lambda: GSearch(schedule=((99, 0.5),)), DECODER.format(99)),
    # places and counts that do not fit each other
    (lambda: VScan(layers=(0, 2, 3)), "one ratio per layer: there are 3 layers and 2 ratios"),
    (lambda: ViTCoP(layers=(0, 0, 2)), "at least one layer, and each of them once"),
    (lambda: GSearch(schedule=((0, 0.5),)), "no layer before it to give last_row: use layer 1 or later"),
    (lambda: GSearch(schedule=((2, 0.3), (3, 0.5))), "tokens that have left do not come back"),
    (lambda: DyCoke(layer=0), "decode sites start at layer 1"),
    (lambda: QCache(layers=(0,)), "layer 0 has no layer before it"),
    (lambda: DMLLM(layer=4, last=4), "last=4: tokens skip from layer 4 on, so give a layer after"),
    (lambda: DMLLM(layer=-2, last=2), "last=2: tokens skip from layer 4 on"),
    (
        lambda: DMLLM(steps=(3,), last=4),
        "steps say when tokens leave, and last where they skip layers: give one of them",
    ),
    (lambda: DMLLM(steps=(3,)), "how='late' says at which denoising steps"),
    (lambda: DyMU(threshold=(0.1, 0.2)), "threshold has 2 numbers, and 4 vision blocks merge"),
    # too little
    (lambda: DyMU(keep=1e-9), LEAST),
    (lambda: EvoPrune(keep=0.1), LEAST),
    (lambda: GSearch(keep=1e-6), LEAST),
    (lambda: ParVTS(keep=0.3, layer=4), LEAST),
    (lambda: QCache(keep=0.1), LEAST),
    (lambda: QCache(keep=0.6, of="q"), LEAST),
    (lambda: RedundancyLens(keep=0.3, layers=(2,)), LEAST),
    (lambda: AIR(keep=0.5), "air removes nothing that a share could be of"),
    # numbers that are none
    (lambda: DyMU(threshold=float("nan")), "give a finite number, such as"),
    (lambda: DyCoke(threshold=2.0), "threshold=2.0 is not a limit for cosines: give 0.0 to 1.0"),
    (lambda: HoliTom(tau=-1.0), "tau=-1.0 is not a limit for cosines: give 0.0 to 1.0"),
    (lambda: HoliTom(beta=2.0), "beta=2.0 is not a share: give 0.0 to 1.0"),
    (lambda: ViTCoP(cutoff=-2.0), "cutoff=-2.0 is not a distance: give 0.0 or more"),
    (lambda: ViTCoP(reach=0.0), "reach=0 leaves no cluster: give more than 0"),
    (lambda: ViTCoP(clusters=1.5), "clusters=1.5 is not a share of the tokens"),
    (lambda: EvoPrune(protect=1.5), "protect=1.5 is not a share of the tokens"),
    (lambda: LFTR(floor=-0.1), "no weight of a frame: give 0 to 1"),
    (lambda: RedundancyLens(sample=0.0), "no share of tokens to probe"),
    (lambda: EvoPrune(bandwidth=0.0), "a bandwidth above 0"),
    (lambda: AIR(epsilon=0.0), "epsilon=0.0 is not above 0"),
    # frames that nobody knows
    (lambda: DyCoke(ratio=0.3), FRAMES),
    (lambda: DyCoke(keep=0.5), FRAMES),
    (lambda: HoliTom(segments="optimal"), FRAMES),
    (lambda: HoliTom(segments="similarity"), FRAMES),
    # sums
    (lambda: DyMU() + FastV(), BOTH),
    (lambda: DyMU() + ADSC(positions="renumber"), BOTH),
    (lambda: QCache() + ParVTS(positions="renumber"), BOTH),
    (lambda: AIR(positions="native"), 'positions exist already: use positions="keep" or "renumber"'),
    (lambda: DyCoke() + DyCoke(), "only one decode site can act on a model"),
    (lambda: DyMU() + QCache(positions="virtual"), "takes queries and keys of tokens from another layer"),
    (lambda: QCache() + FastV(layer=2), SAME),
    (lambda: FastV(layer=3) + QCache(layers=(2, 3)), SAME),
    (lambda: QCache() + HoliTom(segments="none"), SAME),
    (lambda: QCache(tokens="visual") + FastV(layer=2), SAME),
    (lambda: QCache() + QCache(), "layer 1 reuses already"),
    (lambda: ParVTS(layer=4, ratio=0.5) + ParVTS(layer=4, ratio=0.9), ONE_SAYS.format("parvts and parvts")),
    (
        lambda: RedundancyLens(layers=(), hollow_layers=(2,)) + RedundancyLens(layers=(), hollow_layers=(4,)),
        ONE_SAYS.format("redundancylens and redundancylens"),
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be(number: int) -> None:
    made, sentence = REFUSED[number]
    model = tiny.model("llava")
    with pytest.raises(FoveateError, match=sentence) as refused:
        foveate.compress(model, made()).remove()
    said = str(refused.value)
    assert "\n" not in said
    assert foveate.attached(model) is None


def tuples() -> list[tuple[type[Method], str]]:
    """Every option of a method that takes several values and is None by default, those of bases for methods among them."""
    methods = [*foveate.list_methods().values(), CachePruner]
    return [
        (cls, f.name)
        for cls in methods
        for f in fields(cls)
        if f.default is None and re.search("tuple|Spelling", str(f.type))
    ]


@pytest.mark.parametrize(("cls", "option"), tuples())
def test_nothing_is_no_list(cls: Any, option: str) -> None:
    """An empty schedule would be a silent way to do nothing; only where it says something it is taken."""
    if option in cls.may_be_empty:  # as tests/methods/test_redundancylens.py has it
        return
    with pytest.raises(ConfigError, match=rf"{cls.name()}: {option}=\(\) names nothing: leave it out"):
        cls(**{option: ()})


def test_a_schedule_without_stages_keeps_all() -> None:
    """Searches may find that nothing should leave."""
    found = FastV(layer=2, ratio=0.5).with_schedule(Schedule())
    assert found == FastV(keep=1.0)


#: what is all or nothing, and runs: how much it leaves of its unit, or None
EXTREMES: list[tuple[Method, float | None]] = [
    (DyMU(threshold=-1.0), 1.0),
    (DyMU(threshold=0.0), 1.0),
    (DyMU(threshold=99.0), None),  # half in each block
    (DyMU(keep=0.0), 0.0),
    (AIR(tau=0.0), None),
    (AIR(tau=1e9, window=1000, outliers=10**6), None),
    (HoliTom(keep=0.0), 0.0),
    (HoliTom(tau=1.0, beta=0.0, contextual=1.0), None),
    (LFTR(keep=1e-9, floor=0.0), None),
    (RedundancyLens(ratio=1.0), 1.0),
    (RedundancyLens(ratio=0.0, sample=1e-9, window=0), None),
    (QCache(ratio=1.0), 1.0),
    (ParVTS(ratio=0.0), None),
    (ParVTS(ratio=1.0), 1.0),
    (GSearch(keep=0.5, steepness=1000.0), 0.5),
    (GSearch(keep=0.5, steepness=0.0), 0.5),
    (EvoPrune(protect=1.0, neighbours=10**6, bandwidth=1e-30, diversity=1e30), None),
    (ViTCoP(clusters=1e-9, cutoff=1e-9, reach=1e-9), None),
    (ViTCoP(cutoff=2.0, reach=1.5), None),
    (DMLLM(ratio=1.0), None),
    (DMLLM(ratio=0.0, last=-1), None),
    (VScan(window=10**6), None),
    (MustDrop(together=1.0, alone=1.0, alike=1.0), None),
    (MustDrop(threshold=-1.0, alike=1.0), 1.0),
    (MustDrop(threshold=99.0, key=0.0, alike=0.0), None),
    (MustDrop(keep=0.4, key=1.0), 0.4),
    (IVCPrune(coordinates=1.0), None),
    (IVCPrune(ratio=1.0), None),
    (MMTok(keep=1e-9), None),
    (FlowCut(keep=1.0), 1.0),
    (FlowCut(keep=1e-9), None),
    (ApET(keep=1e-9), None),
    (VLMPruner(keep=0.5), 0.5),
    (VLMPruner(keep=0.2), None),
    (HiPrune(keep=0.3, alpha=1.0), 0.3),
    (HiPrune(keep=1e-9, alpha=0.0), None),
    (HoloV(keep=1e-9), None),
    (PruneVid(tau=1.0), None),
    (PruneVid(ratios=(1.0, 0.1)), None),
    (AutoPrune(steepness=0.0), None),
    (AutoPrune(steepness=1000.0), None),
    (VidCom2(keep=1e-9), None),
    (FastVID(keep=1e-9), None),
    (FlashVID(keep=1e-9), None),
    (DART(pivots=50), None),
    (PruneSID(keep=1e-9), None),
    (PruMerge(keep=1.0), 1.0),
    (PixelPrune(threshold=0.0), None),
    (OTPrune(keep=1e-9), None),
    (CDPruner(keep=1e-9), None),
    (AnchorPrune(keep=1e-9), None),
    (OTTVid(keep=1e-9), None),
    (SparseVLM(keep=0.5), None),
]

NEWER = (PruneVid, FrameFusion, FastVID, FlashVID, VidCom2, EVS, RLT, OTTVid)


@pytest.mark.parametrize(("method", "share"), EXTREMES, ids=repr)
def test_all_or_nothing_runs(method: Method, share: float | None) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    with torch.no_grad(), foveate.compress(model, method) as handle:
        assert not model(**batch).logits.isnan().any()
        shares = handle.report().shares
    assert share is None or shares[method.unit if method.unit != "cache" else "tokens"] == pytest.approx(
        share, abs=0.06
    )


@pytest.mark.parametrize("cls", [*NEWER, DyCoke, HoliTom])
def test_short_clips_and_small_images(cls: type[Method]) -> None:
    """Videos of one frame and of two, fewer than a window; images of one token, beside an image as there are many."""
    model = tiny.model("qwen2_5_vl")
    for rows in ([[2, (2, 2), 3], [2, (8, 8), 3]], [[2, (1, 4, 4), 3], [2, (2, 4, 4), 3]]):
        batch = tiny.inputs("qwen2_5_vl", rows)
        with torch.no_grad(), foveate.compress(model, cls()):
            assert not model(**batch).logits.isnan().any()


@pytest.mark.parametrize(
    "cls",
    [IVCPrune, MMTok, FlowCut, MustDrop, ApET, VLMPruner, HiPrune, HoloV, AutoPrune, DART, PruneSID, OTPrune, CDPruner],
)
def test_images_of_one_token(cls: type[Method]) -> None:
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[2, (2, 2), 3], [2, (8, 8), 3]])
    with torch.no_grad(), foveate.compress(model, cls()):
        assert not model(**batch).logits.isnan().any()


@pytest.mark.parametrize(
    "method",
    [
        LFTR(keep=0.3),
        LFTR(keep=0.3, joined="sum"),
        CLSE(),
        ApET(keep=0.3),
        VidCom2(keep=0.3),
        HoloV(keep=0.3),
        ParVTS(),
    ],
    ids=repr,
)
def test_an_image_of_two_tokens_in_a_batch(method: Method) -> None:
    """Two tokens are alike in many scores, so that rounding would choose."""
    model, rows = tiny.model("qwen2_5_vl"), [[3, (2, 4), 5], [2, (2, 4), 1, (8, 8), 7]]
    with torch.no_grad(), foveate.compress(model, method):
        whole = model(**tiny.inputs("qwen2_5_vl", rows)).logits[:, -1]
        for i, logits in enumerate(whole):
            alone = model(**tiny.inputs("qwen2_5_vl", rows, only=i)).logits[0, -1]
            torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)


def test_video_methods_take_images() -> None:
    """An image is a video of one frame, beside videos or alone, where a family knows frames."""
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", ROWS["qwen2_5_vl"])
    for method, share in ((DyCoke(decode_ratio=1.0), 1.0), (HoliTom(keep=0.4), 0.4), (LFTR(keep=0.4), 0.4)):
        with torch.no_grad(), foveate.compress(model, method) as handle:
            model(**batch)
            assert handle.report().shares["tokens"] == pytest.approx(share, abs=0.06)
