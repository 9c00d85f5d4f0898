"""The card of a model: what it can do, and what goes on inside."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import fill_cache

import foveate_reference as reference
from foveate_reference import evaluate
from foveate_reference.evaluate import measure, reads
from foveate_reference.exhibits import EXHIBITS
from foveate_reference.inside import inside
from foveate_reference.language import in_english, reading
from foveate_reference.language.model import IMAGE_ID
from foveate_reference.language.packing import answered, embed, read_images


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_CACHE", str(fill_cache(tmp_path_factory.mktemp("cache"), layers=3)))
        patch.setattr("foveate_reference.language.model.FOLDER", Path("nowhere"))
        return reference.load("smollm2")


def test_a_layer_profile_is_that_of_text_that_sees_no_image(smollm2: Any) -> None:
    """Text that goes on alone is what it is where a mask hides the visual tokens from that layer on."""
    model, processor = smollm2
    batch = reading.asked(processor, "test", 1, dict.fromkeys(EXHIBITS, 1.0))[0]
    packed, language = batch.packed, model.model.language_model
    with torch.no_grad():
        visual = model.model.multi_modal_projector(read_images(model, packed.images))
        states, bias = embed(model, packed, visual)
        shown = packed.ids == IMAGE_ID
        hidden = bias.masked_fill((shown[:, None, :] & ~shown[:, :, None])[:, None], torch.finfo(bias.dtype).min)
        turns = language.rotary_emb(states, packed.positions)
        for number, layer in enumerate(language.layers):
            mask = bias if number < 1 else hidden
            states = layer(states, attention_mask=mask, position_ids=packed.positions, position_embeddings=turns)
        right = answered(model, packed, language.norm(states))
        # A random model answers nothing right, so the labels become what it says.
        guesses = model.lm_head(language.norm(states)).argmax(-1)
        said = packed._replace(labels=torch.where(packed.labels >= 0, guesses, packed.labels))
        (hits,) = reading._hits(model, batch._replace(packed=said), [1])
        (never,) = reading._hits(model, batch._replace(packed=said), [None])
    assert not any(right)
    assert all(hit for found in hits.values() for hit in found)
    assert not all(hit for found in never.values() for hit in found)


def test_a_card_of_each_kind_of_model(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CORE", ("color", "texture"))
    for name, (model, processor) in {"smollm2": smollm2, "llava": reference.load("llava")}.items():
        card: Any = measure(model, processor, images=1)
        layers = len(model.model.language_model.layers)
        assert len(card["accuracy_when_visual_tokens_leave_at_layer"]) == layers + 1
        assert len(card["inside"]["layers"]) == layers
        asked = {task for task, count in card["questions"].items() if count}
        assert len(asked) > 12
        assert set(card["accuracy"]) == set(card["accuracy_blind"]) == asked
        json.loads(json.dumps(card, allow_nan=False))
        for layer in card["inside"]["layers"]:
            assert layer["attention_asked"] <= layer["attention_visual"] <= 1
            assert layer["attention_visual_sinks"] <= layer["attention_visual"]
            assert 0 < layer["attention_first_token"] < 1
            assert layer["largest_over_median"] > 1
        assert model.config._attn_implementation != "eager", name


def test_a_sink_is_seen(smollm2: Any) -> None:
    """One visual token gets what the first token has, and all attention."""
    model, processor = smollm2
    sample = in_english(reference.samples("test", tasks=["color"], per_task=1)[0])
    place = 7  # in the prompt: a visual token

    def massive(_: Any, __: Any, out: Any) -> Any:
        states = out[0] if isinstance(out, tuple) else out
        states[:, [0, place], 5] = 500.0
        return out

    hooks = [layer.register_forward_hook(massive) for layer in model.model.language_model.layers]
    found = inside(model, processor, [sample])
    for hook in hooks:
        hook.remove()
    assert 5 in found["sink_channels"]
    assert found["layers"][-1]["visual_sinks"] == 1
    assert found["layers"][-1]["largest_over_median"] > 100
    assert found["layers"][-1]["largest_is_of_first_token"] in (0.0, 1.0)


def test_which_layers_read() -> None:
    profile = [{"a": value} for value in (0.2, 0.2, 0.25, 0.5, 0.9, 1.0, 1.0)]
    assert reads(profile) == {"first": 2, "last": 4}
    assert reads([{"a": 0.2}] * 3) is None


def test_a_model_that_is_not_there(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    monkeypatch.setattr("foveate_reference.language.model.FOLDER", tmp_path)
    for name, said in {
        "smollm2": "no weights of smollm2 yet",
        "nobody": "there are qwen2_5_vl, llava, smollm2",
    }.items():
        with pytest.raises(SystemExit):
            evaluate.main([name])
        assert said in " ".join(capsys.readouterr().err.split())
