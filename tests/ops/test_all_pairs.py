"""Whatever compares all pairs of tokens does so a part at a time: the choice is the same, and memory is not their square."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packed import tokens_at
from torch.utils.flop_counter import FlopCounterMode

from foveate import EvoPrune, HoliTom, Method, Reduction, Signal, Site, Tokens, ViTCoP
from foveate.lab.bench.memory import LiveTensors
from foveate.ops import pairs
from foveate.ops.segments import gram_pairs

RAGGED = [(1, 1, 1), (1, 9, 8), (3, 2, 2), (1, 3, 4), (1, 1, 2)]
STAGE = Site("decoder", 2, 0.4, shares=(0.4,), signals=("keys", Signal("hidden", layer=0)))
METHODS: list[tuple[Method, Site, int]] = [  # and how often it compares
    (EvoPrune(), Site.tower(1, 0.6, mid=True), 2),
    (ViTCoP(), STAGE, 3),
    (HoliTom(segments="none", contextual=0.5), Site.output(0.4), 3),
]
each_method = pytest.mark.parametrize(("method", "site", "questions"), METHODS, ids=lambda x: getattr(x, "name", str)())


def packed(grid: list[tuple[int, int, int]]) -> Tokens:
    tokens = tokens_at(grid, 0, channels=8)
    received = torch.rand(len(tokens), generator=torch.Generator().manual_seed(1))
    signals = {"received": received, "keys": tokens.keys, Signal("hidden", layer=0): tokens.hidden}
    return replace(tokens, signals=signals)


def chosen(reduction: Reduction) -> tuple[list[int], list[int]]:
    assert reduction.groups is not None
    return reduction.keep.tolist(), reduction.groups().tolist()


@each_method
def test_the_same_indices_in_parts(method: Method, site: Site, questions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, found = packed(RAGGED), []
    for held in (pairs.HELD, 1000, 1):
        monkeypatch.setattr(pairs, "HELD", held)
        found.append(chosen(method.reduce(tokens, site)))
    assert found[0] == found[1] == found[2]


@each_method
def test_memory_grows_with_the_tokens(
    method: Method, site: Site, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, peaks, width, n = packed([(1, 16, 25)]), [], 8, 400
    for held, made in ((pairs.HELD, gram_pairs([n])), (20 * n, questions * n * n)):
        monkeypatch.setattr(pairs, "HELD", held)
        with LiveTensors(tokens) as live, FlopCounterMode(display=False) as counter:
            method.reduce(tokens, site)
        peaks.append(live.peak)
        assert counter.get_total_flops() == method.flops(tokens, site) == made * 2 * width
    assert peaks[0] > 4 * n * n
    assert peaks[1] < peaks[0] / 5
