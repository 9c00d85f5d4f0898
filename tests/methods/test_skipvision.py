"""Which tokens go through the FFNs, what a summary is, and what is left in the cache."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from calls import generate

import foveate
from foveate import SkipVision
from foveate.handle import host_of
from foveate.learning import Stage
from foveate.losses import Answer
from foveate.training.relaxed import Relaxed, Tape

ROWS: list[list[tiny.Item]] = [[3, "image", 5, "image", 2], [2, "image", 4]]


@pytest.mark.parametrize("family", tiny.WHOLE)
@pytest.mark.parametrize("free", [True, False])
def test_a_summary_and_the_last_tokens_are_retained(family: str, free: bool) -> None:
    """Round a quarter of an image and its summary: the summary, and the last ones."""
    model = tiny.model(family)
    with torch.no_grad(), foveate.compress(model, SkipVision(free=free)) as handle:
        generate(model, tiny.inputs(family, ROWS))
        visits = handle.report().visits
        shares = handle.report().shares
    sizes = visits[0].before
    kept = tuple(int((n + 1) / 4 + 0.5) - 1 for n in sizes)  # and the summary, which reports leave out
    skips = [visit for visit in visits if "ffn" in visit.site]
    assert len(skips) == tiny.LAYERS
    for visit in skips:
        assert (visit.before, visit.after) == (sizes, kept)
        assert [sorted(index) for index in visit.kept] == [list(range(n - k, n)) for n, k in zip(sizes, kept)]
    caches = [visit for visit in visits if visit.site.startswith("cache")]
    assert [visit.after for visit in caches] == [kept] * (tiny.LAYERS if free else 0)
    assert (shares["cache"] < 0.5) == free


def test_a_summary_is_a_weighed_mean() -> None:
    """At first the plain one."""
    model: Any = tiny.model("llava")
    method, seen = SkipVision(), []
    parts = method.modules(host_of(model))
    assert not bool(parts["score"].weight.any())
    with torch.no_grad():
        parts["score"].weight.normal_()

    class Seen(Relaxed):
        def answer(self, tokens: foveate.Tokens, site: foveate.Site) -> Any:
            found = super().answer(tokens, site)
            seen.append((tokens, found))
            return found

    relaxed = Seen.of(method, parts, Stage((Answer(),), 1.0), host_of(model), Tape())
    with torch.no_grad(), foveate.compress(model, relaxed):
        model(**tiny.inputs("llava", ROWS))
    tokens, answer = seen[0]
    for x, summary in zip(tokens.hidden.split(tokens.counts), answer.hidden):
        weight = parts["score"](x)[:, 0].softmax(0)
        torch.testing.assert_close(summary[0], (weight[:, None] * x).sum(0))
