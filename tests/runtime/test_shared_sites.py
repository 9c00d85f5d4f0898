"""Methods that share a site act one after the other: the second sees the signals of the tokens that the first left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import tiny
import torch
from calls import ROWS, close

import foveate
from foveate import Host, Method, Reduction, Site, Tokens


@dataclass(frozen=True)
class Thin(Method):
    """Drops every third token or so, differently in every span, at the places of the test."""

    places: ClassVar[Sequence[Site]] = ()

    def sites(self, host: Host) -> Sequence[Site]:
        return [replace(site, signals=()) for site in type(self).places]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask((tokens.index + tokens.segment) % 3 != 0)


@dataclass(frozen=True)
class Listen(Method):
    """Keeps everything and notes what it is told."""

    places: ClassVar[Sequence[Site]] = ()
    heard: ClassVar[list[Tokens]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        return type(self).places

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        type(self).heard.append(tokens)
        return Reduction(torch.arange(len(tokens)), tokens.counts)


ATTENTION = ("keys", "values", "received", "residual")
PLACES = [
    Site("tower", 1, where="mid", signals=ATTENTION),
    Site("tower", 2, signals=ATTENTION),
    Site("tower_output", signals=ATTENTION),
    Site("decoder", 2, signals=(*ATTENTION, "last_row", "text_rows")),
]


@pytest.mark.parametrize("site", PLACES, ids=str)
def test_signals_follow_the_first_reduction(family: str, impl: str, site: Site) -> None:
    cls = family in tiny.CLS and site.at.startswith("tower")
    place = replace(site, signals=(*site.signals, "cls_row")) if cls else site
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])

    def hear(method: Any) -> Tokens:
        Listen.heard.clear()
        with torch.no_grad(), foveate.compress(model, method):
            model(**batch)
        return Listen.heard[0]

    Listen.places = Thin.places = [place]
    whole = hear(Listen())
    left = hear(Thin() + Listen())
    twice = hear(Thin() + Thin() + Listen())
    keep = (whole.index + whole.segment) % 3 != 0
    again = (whole.index[keep] + whole.segment[keep]) % 3 != 0
    assert len(left) < len(whole)
    for name in place.signals:
        close(left.signals[name], whole.signals[name][keep], 1e-5)
        close(twice.signals[name], whole.signals[name][keep][again], 1e-5)
