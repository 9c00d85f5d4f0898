"""Assisted decoding with a small vision-language model beside the large one: either may be compressed, or both."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from calls import HANDS_OVER_FEATURES, ROWS
from plans import PLANS

import foveate
from foveate.errors import InputError

FAMILIES = ("llava", "llava_next", "internvl")  # stock Qwen cannot: it has no mm_token_type_ids for what is guessed
every = pytest.mark.parametrize("family", FAMILIES)
OPTIONS: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, bad_words_ids=[[i] for i in range(len(tiny.SPECIAL))])


@cache
def assistant(family: str) -> Any:
    """Of another mind."""
    small = tiny.build(tiny.config(family), seed=1)
    small.generation_config.num_assistant_tokens = 3
    small.generation_config.assistant_confidence_threshold = 0.0
    return small


def lone(family: str) -> dict[str, torch.Tensor]:
    return tiny.inputs(family, ROWS[family][:1])


@every
def test_with_nothing_removed_it_is_stock(family: str) -> None:
    model, helper, batch = tiny.model(family), assistant(family), lone(family)
    stock = model.generate(**batch, **OPTIONS, assistant_model=helper)
    assert torch.equal(stock, model.generate(**batch, **OPTIONS))
    with foveate.compress(model, foveate.FastV(ratio=1.0)), foveate.compress(helper, foveate.FastV(ratio=1.0)):
        assert torch.equal(model.generate(**batch, **OPTIONS, assistant_model=helper), stock)


@every
@pytest.mark.parametrize("plan", ["cascade", "visionzip", "luvc", "ipcv", "renumber"])  # FastV would ask the last guess
@pytest.mark.parametrize("who", ["model", "both", "assistant"])
def test_the_assistant_changes_nothing(family: str, plan: str, who: str) -> None:
    """What the model says is what it would say alone, whoever guesses."""
    model, helper, batch = tiny.model(family), assistant(family), lone(family)
    acts = plan in ("visionzip", "luvc", "ipcv")
    if who == "assistant" and acts and HANDS_OVER_FEATURES:  # its tower does not run
        with foveate.compress(helper, PLANS[plan]), pytest.raises(InputError, match="not encoded under this handle"):
            model.generate(**batch, **OPTIONS, assistant_model=helper)
        return
    with ExitStack() as attached:
        for each in {"model": [model], "assistant": [helper], "both": [model, helper]}[who]:
            attached.enter_context(foveate.compress(each, PLANS[plan]))
        alone = model.generate(**batch, **OPTIONS)
        assert torch.equal(model.generate(**batch, **OPTIONS, assistant_model=helper), alone)
