"""Positions beyond those of the longest prompt: rows for so many, and no more."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from served import ask, engine, expected, request
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope

from foveate import Random
from foveate.errors import InputError, UnsupportedModelError
from foveate.serving.plan import Item
from foveate.serving.vllm.rope import beyond, lengthen

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "mrope": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
}


def rope(parameters: dict[str, Any], rows: int) -> Any:
    with set_current_vllm_config(VllmConfig()):
        made: Any = get_rope(32, rows, rope_parameters=parameters, dtype=torch.float64, mrope_positions_factor=1)
    return made


@pytest.mark.parametrize("name", ROPES)
def test_tables_are_lengthened(name: str) -> None:
    """A longer one has the rows of one that was made so long."""
    short, long = rope(ROPES[name], 33), rope(ROPES[name], 400).cos_sin_cache
    lengthen(nn.ModuleList([short]), 100)
    assert len(short.cos_sin_cache) >= 400
    assert torch.equal(short.cos_sin_cache[:400], long[:400])


def test_tables_whose_frequencies_follow_from_their_length_are_refused() -> None:
    short = rope({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 64)
    rows = short.cos_sin_cache
    with pytest.raises(UnsupportedModelError, match="give --max-model-len 16"):
        lengthen(nn.ModuleList([short]), 17)
    assert short.cos_sin_cache is rows
    lengthen(nn.ModuleList([short]), 16)
    assert short.cos_sin_cache is rows


def test_positions_beyond_tokens() -> None:
    square, line = (Item(((1, *size),), ((1, *size),)) for size in ((4, 4), (1, 16)))
    assert [beyond(each, (3,), mrope=False) for each in (square, line)] == [13, 13]
    assert [beyond(each, (3,), mrope=True) for each in (square, line)] == [1, 13]
    assert beyond(square, (9,), mrope=True) == 0


def test_one_request_of_too_many_is_refused() -> None:
    """It fails alone; those whose positions are beyond the longest prompt's, but not too far, are answered."""
    method, sizes = Random(keep=0.1), [(24, 32), (40, 24), (48, 48)]

    def asked(images: int) -> dict[str, Any]:
        return request("llava", "@" * images, *(sizes[i % 3] for i in range(images)))

    fits, beyond_all = asked(5), asked(8)
    want = expected("llava", method, [fits], new=4)
    with engine("llava", method, max_model_len=64, limit_mm_per_prompt={"image": 9}) as llm:
        assert ask(llm, [fits], max_tokens=4)[0].agrees(want[0])
        with pytest.raises(InputError, match="send fewer or smaller images"):
            ask(llm, [beyond_all], max_tokens=4)
        assert ask(llm, [fits], max_tokens=4)[0].agrees(want[0])
    assert want[0].prompt > 64
