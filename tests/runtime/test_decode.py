"""Decode sites: a step sees a subset of the cache; nothing is freed, and everything can come back."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import torch
from calls import HANDS_OVER_FEATURES, ROWS, close, generate

import foveate
from foveate import DyCoke
from foveate.runtime.cache import KVIndex
from foveate.runtime.layout import Rows, frames, tokens_of


@pytest.fixture(params=[family for family in tiny.FAMILIES if not tiny.slides(family)])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_prefill_is_untouched_and_decode_sees_less(family: str, impl: str) -> None:
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family][:2])
    options: Any = dict(output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        stock: Any = generate(model, batch, **options)
        with foveate.compress(model, DyCoke(ratio=1.0, decode_ratio=0.3, layer=3)) as handle:
            ours: Any = generate(model, batch, **options)
            report = handle.report()
    assert torch.equal(ours.logits[0], stock.logits[0])
    assert not torch.equal(ours.logits[2], stock.logits[2])
    assert report.flops["decode"] < report.full_flops["decode"]
    assert report.kv_ratio == 1.0  # nothing is freed


def test_a_step_is_a_masked_step(family: str) -> None:
    """One decode step equals stock with the keys of the hidden tokens masked in the deeper layers."""
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS[family][:1])
    seen: dict[str, Any] = {}

    class Spy(DyCoke):
        def reduce(self, tokens: Any, site: Any) -> Any:
            seen["reduction"] = super().reduce(tokens, site)
            return seen["reduction"]

    length = batch["input_ids"].shape[1]
    step: Any = dict(input_ids=torch.tensor([[20]]), attention_mask=torch.ones(1, length + 1, dtype=torch.long))
    if family in tiny.PACKED:  # stock Qwen numbers a bare step by the whole mask
        step["position_ids"] = torch.full((3, 1, 1), length)
    with torch.no_grad():
        with foveate.compress(model, Spy(ratio=1.0, decode_ratio=0.3, layer=3)):
            cache = model(**batch).past_key_values
            ours = model(**step, past_key_values=cache).logits
        visual = tiny.visual_mask(family, batch)[0].nonzero().flatten()
        hidden = torch.ones(len(visual), dtype=torch.bool)
        hidden[seen["reduction"].keep] = False
        allowed = torch.ones(1, 1, 1, length + 1, dtype=torch.bool)
        allowed[..., visual[hidden]] = False

        def hide(module: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "attention_mask": allowed}

        cache = model(**batch).past_key_values
        for i, layer in tiny.of_attention(family, list(enumerate(tiny.lm(model).layers))):
            if i >= 3:
                layer.register_forward_pre_hook(hide, with_kwargs=True)
        close(ours, model(**step, past_key_values=cache).logits)


def test_batch_beams_and_composition(family: str) -> None:
    model, rows = tiny.model(family), ROWS[family][:2]
    with (
        torch.no_grad(),
        foveate.compress(model, foveate.Stride(ratio=0.5, layers=(1,)) + DyCoke(ratio=1.0, decode_ratio=0.4, layer=3)),
    ):
        together = generate(model, tiny.inputs(family, rows))
        for i in range(2):
            assert torch.equal(generate(model, tiny.inputs(family, rows, only=i))[0, -4:], together[i, -4:])
        if family not in tiny.GROUPED or HANDS_OVER_FEATURES:  # older versions repeat tiles or patches, not images
            assert generate(model, tiny.inputs(family, rows), num_beams=2).shape == together.shape


def test_without_a_cache_it_does_nothing_and_says_so() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1])
    with torch.no_grad():
        stock = generate(model, batch, use_cache=False)
        method = DyCoke(ratio=1.0, decode_ratio=0.3, layer=3)
        with foveate.compress(model, method), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert torch.equal(generate(model, batch, use_cache=False), stock)
            generate(model, batch, use_cache=False)
    said = [str(warning.message) for warning in caught if "use_cache=False" in str(warning.message)]
    assert len(said) == 1
    assert said[0].startswith("dycoke acts on the KV cache")


@pytest.mark.parametrize("rows", [1, 2])
def test_as_long_as_the_choice_is_the_same_slots_are_found_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step after sees the same slots and the newest one, as if all were found anew; also with padding of ours."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:rows])
    options: Any = dict(output_logits=True, return_dict_in_generate=True, min_new_tokens=4)
    found: list[int] = []
    reduce = Rows.reduce
    monkeypatch.setattr(Rows, "reduce", lambda self, reduction: found.append(1) or reduce(self, reduction))  # type: ignore[func-returns-value]
    with torch.no_grad(), foveate.compress(model, DyCoke(decode_ratio=0.3, layer=3, threshold=0.0)):
        once = generate(model, batch, **options).logits
        assert len(found) == 1
        monkeypatch.setattr(KVIndex, "show", lambda self, shown: None)
        anew = generate(model, batch, **options).logits
    assert len(found) == len(once) == 4  # one before, and one for every step
    assert all(torch.equal(a, b) for a, b in zip(once, anew))


def test_an_entry_that_knows_its_visual_tokens_shares_nothing_with_one_that_does_not() -> None:
    tokens = tokens_of(frames([(1, 1, 2)]))
    layout = Rows(3, 3, (3,), tokens, torch.zeros(2, dtype=torch.long), torch.tensor([0, 1]))
    empty = KVIndex(0, 0)
    plain, watched = (empty.append_rows(layout, None, keep_visual=watches) for watches in (False, True))
    assert plain.append(1).visual is None
    assert watched.append(1).visual is not None
