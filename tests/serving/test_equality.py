"""vLLM with a method says what transformers says with the same method, token by token, in a batch and alone."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from served import ask, engine, expected, request, requests

from foveate import (
    ADSC,
    CLSE,
    DMLLM,
    IPCV,
    LUVC,
    OIM,
    VTW,
    DivPrune,
    Downsample,
    DyMU,
    FastV,
    Feather,
    FiCoCoV,
    HoliTom,
    PixelPrune,
    PruMerge,
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
    "feather": Feather(layers=(1, 3), ratios=(0.6, 0.5)),  # the same, without positions
    "visionzip + feather": VisionZip(keep=0.7) + Feather(layers=(2, 4), ratios=(0.6, 0.5)),
    "clse": CLSE(layers=(1, 3), ratios=(0.6, 0.5)),  # those of an earlier one, on the grid, and attention
    "ficocov": FiCoCoV(keep=0.5),  # queries in the tower
    "vitcop": ViTCoP(keep=0.5),  # hidden states of a layer long before
    "holitom": HoliTom(keep=0.5, segments="none"),
    "prumerge": PruMerge(keep=0.4),  # values that the rest of the image has gone into
    "pixelprune": PixelPrune(keep=0.5),  # pixels, before the patch embedding
    "dymu + dmllm": DyMU(keep=0.6, positions="keep") + DMLLM(ratio=0.5, layer=3),  # no unmerging, no steps
}
#: by the question's attention, for which a prompt has to come in one piece
WHOLE = {"fastv", "clse", "vscan", "feather", "visionzip + feather", "holitom", "dymu + dmllm"}
EVERYTHING = IPCV(ratio=1.0) + ADSC(keep=1.0)

FAMILIES = (
    *("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_5", "glm4v", "llava", "llava_siglip", "internvl", "idefics3"),
    "mistral3",
    *("llava_next", "llava_onevision"),
)
#: elsewhere one for each place where a method may act; where tiles are put together, none that leaves holes in the tower
FEW = ("random", "oim", "ipcv", "adsc", "luvc", "ipcv + adsc")
BEFORE = ("random", "oim", "ipcv")
TILED = ("random", "stride twice", "ipcv", "adsc", "ipcv + adsc")
#: another family but for the experts in its decoder, norms in its tower, or the processor; the same model in another format
SIBLINGS = ("qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe", "glm_ocr", "llava_pixtral", "smolvlm", "internvl_chat")
#: those of which most decoder layers have a state, where no tokens leave
STATES = ("qwen3_5", "qwen3_5_moe")
CASES = [
    (family, name)
    for family in FAMILIES
    for name in (METHODS if family == FAMILIES[0] else TILED if family in FAMILIES[-2:] else FEW)
    if family not in STATES or name in BEFORE
] + [(family, name) for family in SIBLINGS for name in ("ipcv", "oim" if family in STATES else "luvc")]

PARTS = ("clse", "divprune", "ipcv", "adsc", "vtw", "tome", "visionzip", "feather", "prumerge")
#: what `make test-vllm` asks of Qwen2.5-VL: one method of each kind, and sums in place of their parts
KINDS = tuple(name for name in METHODS if name not in PARTS)
#: and of others, one in the tower and the decoder, one that merges in both, one between them
BOTH = ("random", "luvc", "ipcv + adsc")
IN_TEST = {"qwen2_5_vl": KINDS, "qwen3_vl": BOTH, "llava": BOTH, "internvl": BOTH, "llava_next": BOTH}
IN_TEST |= dict(
    qwen2_vl=("random",), llava_siglip=("random",), llava_onevision=("ipcv + adsc",), qwen3_vl_moe=("luvc",)
)
IN_TEST |= dict.fromkeys((*STATES, "glm4v", "glm4v_moe", "glm_ocr"), ())  # put together like Qwen2.5-VL
IN_TEST |= dict(llava_pixtral=())  # and like Mistral Small 3
IN_TEST |= dict(mistral3=("luvc",))  # all images in one row
IN_TEST |= dict.fromkeys(("idefics3", "smolvlm"), ())  # and like InternVL


def leaves_to_the_matrix(family: str, name: str = "") -> bool:
    """Methods of one kind are asked of one family, and of a family that is built like another there is one engine."""
    return name not in IN_TEST.get(family, ("luvc",)) if name else len(IN_TEST.get(family, ())) < 2


#: images of odd shapes are asked of these
ODD = {
    "qwen2_5_vl": "luvc",
    "qwen3_vl": "ipcv + adsc",
    "glm4v": "luvc",
    "llava": "ipcv + adsc",
    "internvl": "luvc",
    "idefics3": "luvc",
    "llava_next": "ipcv + adsc",
    "llava_onevision": "ipcv + adsc",
}


@pytest.mark.parametrize(("family", "name"), CASES)
def test_vllm_says_what_transformers_says(family: str, name: str) -> None:
    method, wanted = METHODS[name], requests(family)
    odd = of_odd_shapes(family) if ODD.get(family) == name else []
    want = expected(family, method, wanted + odd)
    options = {"enable_chunked_prefill": False} if name in WHOLE else {}
    with engine(family, method, **options) as llm:
        together, alone = ask(llm, wanted), [ask(llm, [each])[0] for each in wanted]
        shapes = ask(llm, odd) if odd else []
    assert all(a.agrees(b) for a, b in zip(shapes, want[len(wanted) :], strict=True))
    for one, other, right in zip(together, alone, want):
        assert one.agrees(right)
        assert other.agrees(right)
        assert one.prompt == other.prompt
    stock = expected(family, None, wanted)
    assert not all(a.agrees(b) for a, b in zip(want, stock)), "it changes nothing here"


def of_odd_shapes(family: str) -> list[dict[str, Any]]:
    """A single pixel, a line, a column: alone, and beside an image as there are many."""
    shapes = [(1, 1), (3, 150), (150, 3)]
    wanted = [request(family, "the bird@ and@", shape, (48, 48)) for shape in shapes]
    return wanted + [request(family, "the bird@", shape) for shape in shapes]


@pytest.mark.parametrize("family", FAMILIES + SIBLINGS)
def test_keeping_everything_is_stock(family: str) -> None:
    wanted = requests(family)
    with engine(family, IPCV(ratio=1.0) if family in STATES else EVERYTHING) as llm:
        found = ask(llm, wanted)
    assert all(a.agrees(b) for a, b in zip(found, expected(family, None, wanted), strict=True))


def test_keeping_everything_behind_the_tower_is_stock_to_the_bit() -> None:
    """As the tower is vLLM's."""
    wanted = requests(FAMILIES[0])
    with engine(FAMILIES[0], None) as llm:
        stock = ask(llm, wanted)
    with engine(FAMILIES[0], Random(keep=1.0)) as llm:
        assert ask(llm, wanted) == stock
