"""Medians, ratios in the same round, crossovers; and what is said where something is missing."""

from __future__ import annotations

import pytest
from cases import case, result

from foveate.lab.bench.result import Case, Line
from foveate.lab.bench.show import crossover, markdown
from foveate.lab.bench.summary import Spread, compare, crossing, crossovers, seconds, spread


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0)


def test_ratios_are_of_the_same_round() -> None:
    """The machine was twice as slow in the second round; the method is twice as fast in both."""
    found = compare(case(256, dense=[1.0, 2.0], ours=[0.5, 1.0]), "luvc")
    assert found is not None
    assert found.speed["first"] == Spread(2.0, 2.0, 2.0)
    assert set(found.speed) == {"tower", "prefill", "first", "decode", "total"}


def test_shares_and_ideal() -> None:
    """By hand: 1000 FLOPs to the first token and 90 of decoding, of which half of the prefill's 800 is left."""
    found = compare(case(256, dense=[1.2], ours=[1.0]), "luvc")
    assert found is not None
    assert found.flops == (100 + 400 + 10 + 80 + 90) / (100 + 800 + 10 + 90 + 90)
    to_first, full = 100 + 400 + 10 + 80 / 4, 100 + 800 + 10 + 90 / 4
    assert found.of_ideal == pytest.approx(1.2 / (full / to_first))
    assert (found.kv, found.peak, found.counted, found.tokens) == (0.5, 0.75, 0.6, 128)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([(64, 1.2), (256, 1.5)], 64),  # faster everywhere
        ([(64, 0.5), (256, 0.9)], None),  # nowhere
        ([(64, 0.5), (256, 2.0)], 128),  # half-way on both scales
        ([(256, 2.0), (64, 0.5)], 128),
        ([(64, 1.5), (256, 0.5), (1024, 2.0)], 512),  # what comes before a slow size does not count
        ([(64, 0.5), (256, 2.0), (1024, 1.0)], None),  # 1 is not faster
    ],
)
def test_crossing(curve: list[tuple[int, float]], expected: float | None) -> None:
    found = crossing(curve)
    assert found == (None if expected is None else pytest.approx(expected))


def test_crossovers_are_beyond_the_spread() -> None:
    """The median is above 1 at both sizes, the lower quartile at the larger one only."""
    small = case(64, dense=[1.0] * 5, ours=[0.5, 0.5, 0.9, 2.0, 2.0])
    large = case(256, dense=[1.0] * 5, ours=[0.5] * 5)
    (found,) = crossovers(result(small, large))
    assert found.tokens == pytest.approx(128)
    assert (found.model, found.batch, found.label, found.stage) == ("small", 1, "luvc", "first")
    assert crossover(found) == "about 128"


def test_a_single_size_has_no_crossover() -> None:
    assert crossovers(result(case(64, dense=[1.0], ours=[0.5]))) == []


def test_words_of_a_crossover() -> None:
    fast, slow = case(64, dense=[1.0], ours=[0.5]), case(4096, dense=[1.0], ours=[2.0])
    (none,) = crossovers(result(fast, slow))
    assert crossover(none) == "none up to 4,096"
    (all_of_it,) = crossovers(result(fast, case(4096, dense=[1.0], ours=[0.5])))
    assert crossover(all_of_it) == "64 or fewer"


def test_a_method_that_there_is_no_memory_for() -> None:
    full = case(256, dense=[1.0], ours=[0.5])
    full.lines["luvc"] = Line(full.lines["luvc"].method, error="out of memory")
    assert compare(full, "luvc") is None
    assert "| luvc | out of memory |" in markdown(result(full))
    assert full.rounds == 1


def test_a_stock_model_that_there_is_no_memory_for() -> None:
    """The method's own times are worth knowing then."""
    full = case(256, dense=[], ours=[0.5])
    full.lines["dense"] = Line(None, error="out of memory")
    assert compare(full, "luvc") is None
    text = markdown(result(full))
    assert "| dense | out of memory |" in text
    assert "| luvc | first token 500 ms (500-500) |" in text


def test_nothing_measured_yet() -> None:
    begun = case(256, dense=[], ours=[])
    assert begun.rounds == 0
    assert seconds(begun.lines["luvc"], "first") is None
    assert "| luvc | not measured yet |" in markdown(result(begun))
    empty = Case("small", 1, 1, 1, [1, 1], 32, {"dense": Line(None), "luvc": Line({"method": "luvc"})})
    assert "| dense | not measured yet |" in markdown(result(empty))


def test_the_table() -> None:
    text = markdown(result(case(1024, dense=[1.5, 1.7], ours=[1.0, 1.0]), case(64, dense=[0.1], ours=[0.2])))
    assert "small: 1,024 visual tokens in 1 image, 34 of text, batch 1, float32, sdpa, 2 rounds" in text
    assert "| dense | 1024 |" in text
    assert "1.6 s (1.55-1.65)" in text
    assert "1.60x (1.55-1.65)" in text
    assert "100 ms (100-100)" in text
    assert "faster to the first token than the stock model from so many visual tokens on: luvc about" in text
    assert "one processor, 2 threads, device cpu; foveate 9, torch 9, transformers 9; commit abc" in text
