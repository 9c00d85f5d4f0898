"""Invariants 1, 5 and 7: nothing removed is bit-equal to stock, text is untouched, removal leaves nothing behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from plans import FULL, PLANS, ROWS, plan

import foveate
from foveate.errors import UnsupportedModelError


def generate(model: Any, batch: Any, **options: Any) -> torch.Tensor:
    return model.generate(**batch, max_new_tokens=4, do_sample=False, bad_words_ids=[[i] for i in range(9)], **options)


@pytest.mark.parametrize("full", FULL)
def test_nothing_removed_is_stock(family: str, impl: str, full: str) -> None:
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    with torch.no_grad():
        logits, ids = model(**batch).logits, generate(model, batch)
        with foveate.compress(model, FULL[full]):
            assert torch.equal(model(**batch).logits, logits)
            assert torch.equal(generate(model, batch), ids)


@plan
def test_text_only_is_stock(family: str, plan: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[7], [4]])
    with torch.no_grad():
        logits = model(**batch).logits
        with foveate.compress(model, PLANS[plan]):
            assert torch.equal(model(**batch).logits, logits)
            model(**tiny.inputs(family, ROWS[family]))  # an image in between leaves nothing for the next prompt
            assert torch.equal(model(**batch).logits, logits)


@plan
def test_outer_shapes_are_stock(family: str, plan: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad():
        stock = model(**batch, output_hidden_states=True)
        with foveate.compress(model, PLANS[plan]):
            out = model(**batch, output_hidden_states=True)
    assert out.logits.shape == stock.logits.shape
    assert out.past_key_values.get_seq_length() == stock.past_key_values.get_seq_length()
    assert out.hidden_states[-1].shape == stock.hidden_states[-1].shape
    assert len(out.hidden_states) == len(stock.hidden_states)
    assert not out.logits.isnan().any()


def test_a_copy_is_refused_while_attached(family: str) -> None:
    model = tiny.model(family, fresh=True)
    with foveate.compress(model, PLANS["stride"]), pytest.raises(UnsupportedModelError, match="remove the handle"):
        copy.deepcopy(model)
    copy.deepcopy(model)


@plan
def test_remove_restores_the_model(family: str, plan: str) -> None:
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS[family])
    with torch.no_grad():
        logits = model(**batch).logits
    before = {
        name: (dict(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()
    }
    handle = foveate.compress(model, PLANS[plan])
    with torch.no_grad():
        model(**batch)
    handle.remove()
    for name, module in model.named_modules():
        attributes, hooks, pre_hooks = before[name]
        assert set(vars(module)) == set(attributes), name
        assert getattr(module, "config", None) is attributes.get("config", getattr(module, "config", None)), name
        assert (len(module._forward_hooks), len(module._forward_pre_hooks)) == (hooks, pre_hooks), name
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, logits)
