"""What a call leaves behind: no more than the report needs, unless pictures are asked for."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import tiny
import torch
from probes.synthetic import Alike
from torch import Tensor

import foveate
from foveate import Host, Method, Site, Tokens
from foveate.errors import InputError
from foveate.lab.story import tell
from foveate.runtime.trace import Trace


class Costly(foveate.DyCoke):
    def flops(self, tokens: Tokens, site: Site) -> int:
        return 1000


METHODS = {
    "cuts": foveate.ToMe(keep=0.7) + foveate.FastV(layer=2, ratio=0.5),
    "virtual": Alike(at="tower_output", positions="virtual"),
    "decode": Costly(ratio=1.0, decode_ratio=0.8),
}


def tensors(trace: Trace) -> list[Tensor]:
    """All tensors that a trace holds, in whatever it refers to."""
    found: list[Tensor] = []
    seen: set[int] = set()
    left: list[Any] = [trace]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, (type, Method, Site, Host)):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            found.append(each)
        else:
            left += gc.get_referents(each)
    return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_a_call_keeps_the_survivors_of_each_site_and_nothing_else(family: str, name: str) -> None:
    """Of a decode site those of its last step; in a `trace` block also what pictures are made of."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5], [2, "image", 4]])
    with torch.no_grad(), foveate.compress(model, METHODS[name]) as handle:
        model.generate(**batch, max_new_tokens=6, do_sample=False)
        brief, report = handle._last(), handle.report()
        with handle.trace() as trace:
            model.generate(**batch, max_new_tokens=6, do_sample=False)
        full, told = trace(), tell(trace(), handle.report())
    kept = {id(visit.index) for visit in brief.sites}
    others = [x for x in tensors(brief) if id(x) not in kept and not any(x is b.segments for b in brief.blocks)]
    assert sum(x.numel() for x in others) == 0
    assert len(brief.sites) == len(report.visits) <= len(full.sites)
    assert len(tensors(full)) > len(tensors(brief))
    assert told.frames
    with pytest.raises(InputError, match="was not recorded for pictures"):
        tell(brief, report)


def test_a_decode_site_costs_what_all_of_its_steps_cost() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    with torch.no_grad(), foveate.compress(model, METHODS["decode"]) as handle:
        model.generate(**batch, max_new_tokens=6, do_sample=False)
        brief = handle.report()
        with handle.trace():
            model.generate(**batch, max_new_tokens=6, do_sample=False)
        assert handle.report().flops == brief.flops
        assert brief.flops["sites"] == handle._last().signal_flops + 5 * 1000
        assert handle.report().visits == brief.visits
