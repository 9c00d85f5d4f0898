"""What is wrong with a model or its inputs is said once, by whoever knows best."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from test_bad_input import ROWS, spoiled
from transformers import CONFIG_MAPPING, GPT2Config, GPT2LMHeadModel

import foveate
from foveate.errors import UnsupportedModelError
from foveate.lab.loading import load, load_processor
from foveate.models import family_of, list_families, read_config

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


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask at the terminal, and wait."""
    said = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    for read in (read_config, load, load_processor):
        with pytest.raises(UnsupportedModelError, match=r"runs code of its own .*ends in -hf"):
            read(str(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "sentence"),
    [
        ("clip_vision_model", "is a vision tower alone"),
        ("clip", "is none that transformers has for images and text"),
        ("qwen3_5_text", "has no vision part"),
    ],
)
def test_a_part_of_a_model_is_told_what_it_is(model_type: str, sentence: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"a '{model_type}' model {sentence}.*give a vision-language model"):
        family_of(CONFIG_MAPPING[model_type]())


def test_a_name_is_no_model() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'llava-hf/x' is a name, not a model: load it first"):
        foveate.compress("llava-hf/x", "stride")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_a_tower_of_another_type_than_the_config_says_is_told_so(family: str) -> None:
    model, other = tiny.build(tiny.config(family)), tiny.build(tiny.config("llava_siglip"))
    model.model.set_submodule(tiny.SPECS[family].tower.module, other.model.vision_tower)
    said = model.config.vision_config.model_type
    with pytest.raises(UnsupportedModelError, match=f"is a '{said}', and the tower .* is a 'siglip_vision_model'"):
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
