"""Videos, beside images and alone; in Qwen3-VL and InternVL with text before every frame."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

import saved
from served import ask, engine, expected, film

from foveate import ADSC, IPCV, LUVC, DyCoke, Method, Random

METHODS: dict[str, Method] = {
    "random": Random(keep=0.3),
    "dycoke + random": DyCoke(ratio=0.5, decode_ratio=1.0)
    + Random(keep=0.6),  # what frames repeat; images, too, are cut
    "luvc": LUVC(),
    "ipcv + adsc": IPCV(min_tokens=0) + ADSC(keep=0.4),
}


def requests(family: str) -> list[dict[str, Any]]:
    """A video and an image, no more than text, two videos, an image."""
    image, video = saved.PLACES[family]
    # Of Qwen2.5-VL, vLLM and transformers agree on the positions of text after short videos only.
    slow, fast = (8.0, 8.0) if family == "qwen2_5_vl" else (2.0, 0.5)
    # Of the others, transformers takes two videos together only if they are of one length.
    last = 4 if family.startswith("qwen") else 6
    films = film(8, 24, 40, 1, slow), film(6, 16, 24, 5, fast), film(last, 40, 24, 4, fast)
    pictures = saved.picture(40, 24, 2), saved.picture(48, 48, 3)
    asked: list[tuple[str, dict[str, Any], float]] = [
        (f"{video}the dog and{image}the cat", {"image": [pictures[0]], "video": [films[0]]}, slow),
        ("the cat", {}, 0.0),
        (f"the bird{video}and{video}", {"video": [films[1], films[2]]}, fast),
        (f"the bird{image}", {"image": [pictures[1]]}, 0.0),
    ]
    found = []
    for text, data, fps in asked:
        each: dict[str, Any] = {"prompt": f"user: {text}<|im_end|>\nassistant: "}
        each |= {"multi_modal_data": data} if data else {}
        if "video" in data and family.startswith("qwen2"):
            each["mm_processor_kwargs"] = {"fps": fps, "do_sample_frames": False}
        found.append(each)
    return found


FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl", "internvl_chat", "llava_onevision")
#: in which it is known where image and text meet which frames are of one video
WITH_FRAMES = ("qwen2_5_vl", "qwen3_vl")
CASES = [
    (family, name)
    for family in FAMILIES
    for name in METHODS
    if (family, name) != ("llava_onevision", "luvc") and ("dycoke" not in name or family in WITH_FRAMES)
]


def leaves_to_the_matrix(family: str, name: str) -> bool:
    """One method in the tower and the decoder has every family; the others, sums in place of their parts, have one of them."""
    return name == "random" or (name != "ipcv + adsc" and family != FAMILIES[0])


@pytest.mark.parametrize(("family", "name"), CASES)
def test_videos(family: str, name: str) -> None:
    wanted, method = requests(family), METHODS[name]
    want = expected(family, method, wanted)
    with engine(family, method, limit_mm_per_prompt={"image": 2, "video": 2}) as llm:
        together, alone = ask(llm, wanted), [ask(llm, [each])[0] for each in wanted]
    assert all(a.agrees(b) for a, b in zip(together, want, strict=True))
    assert all(a.agrees(b) for a, b in zip(alone, want, strict=True))
