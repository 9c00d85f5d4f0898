"""vLLM with a method says what transformers says with the same method, token by token, in a batch and alone."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from served import ask, engine, expected, request, requests

from foveate import (
    ADSC,
    IPCV,
    LUVC,
    OIM,
    VTW,
    DivPrune,
    Downsample,
    FastV,
    HoliTom,
    Random,
    Stride,
    ToMe,
    V2Drop,
    VisionZip,
    ViTCoP,
    VScan,
)

METHODS = {
    "random": Random(keep=0.5),
    "stride twice": Stride(ratio=0.5, layers=(0, 3)),
    "divprune": DivPrune(keep=0.4),
    "visionzip": VisionZip(keep=0.5),
    "downsample": Downsample(keep=0.5),
    "oim": OIM(),
    "tome": ToMe(keep=0.7),
    "ipcv": IPCV(min_tokens=0),  # tiny images, too
    "adsc": ADSC(),
    "luvc": LUVC(),
    "vtw": VTW(),
    "v2drop": V2Drop(),
    "fastv": FastV(),
    "ipcv + adsc": IPCV(min_tokens=0) + ADSC(keep=0.4),
    "vscan": VScan(keep=0.4),  # the attention of a layer to come
    "vitcop": ViTCoP(keep=0.5),  # hidden states of a layer long before
    "holitom": HoliTom(keep=0.5, segments="none"),
}
#: by the question's attention, for which a prompt has to come in one piece
WHOLE = {"fastv", "vscan", "holitom"}
EVERYTHING = {"random": Random(keep=1.0), "ipcv + adsc": IPCV(ratio=1.0) + ADSC(keep=1.0)}


FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "llava", "llava_siglip", "internvl", "llava_next", "llava_onevision")
#: elsewhere one for each place where a method may act; where tiles are put together, none that leaves holes in the tower
FEW = ("random", "oim", "ipcv", "adsc", "luvc")
TILED = ("random", "stride twice", "ipcv", "adsc")
#: another family but for the experts in its decoder; the same model in another format
SIBLINGS = ("qwen3_vl_moe", "internvl_chat")
CASES = [
    (family, name)
    for family in FAMILIES
    for name in (METHODS if family == FAMILIES[0] else TILED if family in FAMILIES[-2:] else FEW)
] + [(family, name) for family in SIBLINGS for name in ("ipcv", "luvc")]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_vllm_says_what_transformers_says(family: str, name: str) -> None:
    method, wanted = METHODS[name], requests(family)
    want = expected(family, method, wanted)
    options = {"enable_chunked_prefill": False} if name in WHOLE else {}
    with engine(family, method, **options) as llm:
        together, alone = ask(llm, wanted), [ask(llm, [each])[0] for each in wanted]
    for one, other, right in zip(together, alone, want, strict=True):
        assert one.agrees(right)
        assert other.agrees(right)
        assert one.prompt == other.prompt
    stock = expected(family, None, wanted)
    assert not all(a.agrees(b) for a, b in zip(want, stock, strict=True)), "it changes nothing here"


ODD = {
    "qwen2_5_vl": METHODS["luvc"],
    "qwen3_vl": METHODS["ipcv + adsc"],
    "llava": METHODS["ipcv + adsc"],
    "internvl": METHODS["luvc"],
    "llava_next": METHODS["ipcv + adsc"],
    "llava_onevision": METHODS["ipcv + adsc"],
}


@pytest.mark.parametrize("family", ODD)
def test_images_of_odd_shapes(family: str) -> None:
    """A single pixel, a line, a column: alone, and beside an image as there are many."""
    shapes = [(1, 1), (3, 150), (150, 3)]
    wanted = [request(family, "the bird@ and@", shape, (48, 48)) for shape in shapes]
    wanted += [request(family, "the bird@", shape) for shape in shapes]
    want = expected(family, ODD[family], wanted)
    with engine(family, ODD[family]) as llm:
        found = ask(llm, wanted)
    assert all(a.agrees(b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("family", FAMILIES + SIBLINGS)
def test_keeping_everything_is_stock(family: str, name: str) -> None:
    wanted = requests(family)
    with engine(family, None) as llm:
        stock = ask(llm, wanted)
    with engine(family, EVERYTHING[name]) as llm:
        found = ask(llm, wanted)
    assert all(a.agrees(b) for a, b in zip(found, stock, strict=True))
    if name == "random":  # the tower is vLLM's
        assert found == stock
