"""What is wrong with a model or its inputs is said once, by whoever knows best."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from test_bad_input import ROWS, spoiled
from transformers import GPT2Config, GPT2LMHeadModel

import foveate
from foveate.errors import UnsupportedModelError
from foveate.models import family_of, list_families

FAMILIES = ("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl")


def test_an_unknown_family_is_told_what_there_is_and_how_to_add_one() -> None:
    config = SimpleNamespace(model_type="lava_next", vision_config=None)
    with pytest.raises(
        UnsupportedModelError, match=r"'lava_next'.*'llava_next'.*CONTRIBUTING.md, A family is"
    ) as refused:
        family_of(config)
    assert all(family in str(refused.value) for family in list_families())
    assert "\n" not in str(refused.value)


def test_a_model_without_a_vision_part_is_told_so() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8))
    with pytest.raises(UnsupportedModelError, match=r"a 'gpt2' model has no vision part .*no vision_config"):
        foveate.compress(model, "stride")


def test_a_model_with_code_of_its_own_is_told_so() -> None:
    config = type("Config", (), {"__module__": "transformers_modules.someone.configuration", "model_type": "llava"})()
    with pytest.raises(UnsupportedModelError, match=r"'llava' model runs code of its own .*without trust_remote_code"):
        family_of(config)


def test_a_tower_of_another_type_than_the_config_says_is_told_so() -> None:
    model, other = tiny.build(tiny.config("llava")), tiny.build(tiny.config("llava_siglip"))
    model.model.vision_tower = other.model.vision_tower
    with pytest.raises(
        UnsupportedModelError, match=r"is a 'clip_vision_model', and the tower .* is a 'siglip_vision_model'"
    ):
        foveate.compress(model, "stride")


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
