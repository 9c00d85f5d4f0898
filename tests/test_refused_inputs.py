"""What is wrong with a model or its inputs is said once, by whoever knows best."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
from test_bad_input import ROWS, spoiled
from transformers import GPT2Config, GPT2LMHeadModel

import foveate
from foveate.errors import UnsupportedModelError
from foveate.models import list_families

FAMILIES = ("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl")


def test_an_unknown_family_is_told_what_there_is_and_how_to_add_one() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8))
    with pytest.raises(UnsupportedModelError, match=r"'gpt2'.*CONTRIBUTING.md, A family is one file") as refused:
        foveate.compress(model, "stride")
    assert all(family in str(refused.value) for family in list_families())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["one placeholder less", "one placeholder more", "one image less"])
@pytest.mark.parametrize("method", ["stride", "visionzip", "luvc", "ipcv"])
def test_placeholders_that_do_not_match_are_stock_codes_to_refuse(family: str, how: str, method: str) -> None:
    model, bad = tiny.model(family), spoiled(family, how)

    def error(call: Any) -> Exception:
        with pytest.raises(Exception) as stock:  # noqa: PT011 - whatever stock code raises
            call()
        return stock.value

    for call in (lambda: model(**bad), lambda: model.generate(**bad, max_new_tokens=2)):
        stock = error(call)
        with foveate.compress(model, method):
            ours = error(call)
        assert type(ours) is type(stock)
        assert str(ours) == str(stock)
    tiny.text_logits(model, tiny.inputs(family, ROWS))
