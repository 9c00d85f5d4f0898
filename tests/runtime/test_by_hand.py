"""Changes of a model by hand: they do what they say, beside sites too, and nothing of them stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from calls import close
from probes.by_hand import Dimmed
from snapshot import state_of
from torch import nn

import foveate
from foveate import Changes, Host, Site
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.serving.plan import make_plan

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4]]


@pytest.mark.parametrize("beside", [None, foveate.Stride(keep=0.5)])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_changes_by_hand(family: str, beside: foveate.Method | None) -> None:
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS)
    scaled = tiny.model(family, fresh=True)
    for layer in tiny.lm(scaled).layers:
        layer.mlp.down_proj.weight.data *= 0.5
    norm = tiny.lm(scaled).norm
    stock_norm = norm.forward
    norm.forward = lambda hidden: stock_norm(stock_norm(hidden))
    before, stock = state_of(model), tiny.text_logits(model, batch)
    with foveate.compress(model, Dimmed() if beside is None else beside + Dimmed()) as handle:
        found = tiny.text_logits(model, batch)
        assert tiny.base(model).nickname == family
        assert handle.report().visual_tokens
    if beside is None:
        close(found, tiny.text_logits(scaled, batch))
    else:
        with foveate.compress(scaled, beside):
            close(found, tiny.text_logits(scaled, batch))
    assert not torch.equal(found, stock)
    assert torch.equal(tiny.text_logits(model, batch), stock)
    assert state_of(model) == before


def test_nothing_stays_after_an_exception() -> None:
    """Neither of one in a forward, nor of one while the changes are made."""

    class Half(Dimmed):
        def attach(self, model: nn.Module, host: Host, changes: Changes) -> None:
            super().attach(model, host, changes)
            raise RuntimeError("boom")

    class Late(Dimmed):
        def attach(self, model: nn.Module, host: Host, changes: Changes) -> None:
            super().attach(model, host, changes)
            changes.pre(model.language_model.layers[3], lambda *_: 1 / 0)  # type: ignore[union-attr,index,arg-type]

    model, batch = tiny.model("llava", fresh=True), tiny.inputs("llava", ROWS)
    before, stock = state_of(model), tiny.text_logits(model, batch)
    with pytest.raises(RuntimeError, match="boom"):
        foveate.compress(model, Half())
    assert state_of(model) == before
    with pytest.raises(ZeroDivisionError), foveate.compress(model, Late()):
        model(**batch)
    assert state_of(model) == before
    assert torch.equal(tiny.text_logits(model, batch), stock)


def test_engines_refuse_them_and_others_need_sites() -> None:
    model: Any = tiny.model("llava")
    with pytest.raises(UnsupportedSiteError, match="dimmed changes a transformers model by hand, and this engine"):
        make_plan(Dimmed(), host_of(model), family_of(model.config), model.config)

    class Nowhere(foveate.Method):
        def sites(self, host: Host) -> Sequence[Site]:
            return []

    with pytest.raises(ConfigError, match=r"sites returned \[\], expected a list of at least one Site"):
        foveate.compress(model, Nowhere())
