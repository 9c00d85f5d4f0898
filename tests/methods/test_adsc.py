"""ADSC against plain loops: which tokens stay, how many, and that the mean is what was asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate import ADSC, Host, Tokens
from foveate.errors import ConfigError, FoveateError
from foveate.tokens import Spans

HOST = Host("llava", 4, 32, True)
shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)
quick = settings(max_examples=80, deadline=None)


def tokens_of(*shapes: tuple[int, int]) -> Tokens:
    """Complete spans."""
    n = len(shapes)
    sizes = [height * width for height, width in shapes]
    index = torch.cat([torch.arange(size) for size in sizes])
    spans = Spans(tuple(shapes), tuple(range(n)), (0,) * n, (0,) * n)
    return Tokens(spans, tuple(sizes), index, torch.ones(len(index)), torch.zeros(len(index), 3))


def walk(method: ADSC, host: Host, tokens: Tokens) -> list[list[list[int]]]:
    """Raster indices present in every layer: ``[layer][span]``."""
    sites = {site.layer: site for site in method.sites(host)}
    present = []
    for layer in range(host.layers):
        if layer in sites:
            tokens = method.reduce(tokens, sites[layer]).survivors(tokens)
        rows = tokens.index.split(list(tokens.counts))
        present.append([row.tolist() for row in rows])
    return present


# -- the schedule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(), (3, 3)])
def test_layers_that_make_no_schedule(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="layer"):
        ADSC(layers=layers).sites(HOST)


@quick
@given(shapes, st.integers(1, 40), st.floats(0, 1), st.sampled_from(["1d", "2d", "checker"]))
def test_the_mean_is_the_budget(shape: list[tuple[int, int]], depth: int, keep: float, pattern: Any) -> None:
    """Within one token, for every span: rounding does not add up over the cuts. Counts need no content.

    Where less than one token of an image would be left, one is, so there it is within one.
    """
    present = walk(ADSC(keep=keep, pattern=pattern), Host("llava", 4, depth, True), tokens_of(*shape))
    for span, (height, width) in enumerate(shape):
        mean = sum(len(layer[span]) for layer in present) / depth
        within = 1 if any(len(layer[span]) == 1 for layer in present) else 0.5
        assert mean == pytest.approx(keep * height * width, abs=within + 1e-6)
        assert keep == 0 or all(layer[span] for layer in present)


def test_many_gentle_cuts_still_cut() -> None:
    """Rounding 4 % of 12 tokens at each of 30 layers would never remove one."""
    present = walk(ADSC(keep=0.6, layers=tuple(range(1, 31))), HOST, tokens_of((3, 4)))
    assert sum(len(layer[0]) for layer in present) / 32 == pytest.approx(7.2, abs=0.5)


def test_the_published_budgets() -> None:
    """LLaVA-1.5: 192, 128 and 64 of 576 tokens; at the first, a cut in halves at layers 4, 10 and 16."""
    for keep, mean in ((1 / 3, 192), (2 / 9, 128), (1 / 9, 64)):
        present = walk(ADSC(keep=keep), HOST, tokens_of((24, 24)))
        assert sum(len(layer[0]) for layer in present) / 32 == pytest.approx(mean, abs=0.5)
    sites = ADSC().sites(HOST)
    assert [site.layer for site in sites] == [4, 10, 16]
    assert all(site.keep == pytest.approx(0.507, abs=1e-3) for site in sites)
    assert [site.layer for site in ADSC(keep=1 / 9).sites(HOST)] == [2, 5, 8]


def test_layers_count_from_the_end_too() -> None:
    assert ADSC(layers=(-16, 4)).sites(HOST) == ADSC(layers=(4, 16)).sites(HOST)


def test_rounding_is_the_schedules_only_where_all_tokens_are_there() -> None:
    """After another method, the ratio is that of the tokens present."""
    whole = tokens_of((4, 4))
    half = whole.select(torch.arange(0, 16, 2), (8,))
    method = ADSC(keep=0.5, layers=(0,))
    site = method.sites(HOST)[0]
    assert method.reduce(whole, site).counts == (8,)
    assert method.reduce(half, site).counts == (4,)


def test_a_span_in_two_chunks_gets_what_the_whole_would() -> None:
    method = ADSC(keep=0.3, layers=(0, 1, 2))
    whole, present = tokens_of((5, 5)), [0, 0, 0]
    chunks = [whole.select(torch.arange(11), (11,)), whole.select(torch.arange(11, 25), (14,))]
    for tokens in chunks:
        for cut, site in enumerate(method.sites(HOST)):
            seen = present[cut]
            present[cut] += len(tokens)
            tokens = Tokens(tokens.spans, tokens.counts, tokens.index, tokens.sizes, tokens.coords, seen=(seen,))
            tokens = method.reduce(tokens, site).survivors(tokens)
        present.append(len(tokens))
    assert sum(present[3:]) == len(walk(method, HOST, whole)[2][0])


# -- which tokens -------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from(["last", "first"]))
def test_the_index_rule(n: int, keep: float, offset: Any) -> None:
    kept = walk(ADSC(keep=keep, layers=(0,), offset=offset), HOST, tokens_of((1, n)))[0][0]
    k = max(math.floor(keep * n + 0.5), int(keep > 0))
    rule = {"last": lambda j: math.floor((j + 1) * n / k) - 1, "first": lambda j: math.floor(j * n / k)}[offset]
    assert kept == [rule(j) for j in range(k)]
    assert all(a < b for a, b in zip(kept, kept[1:]))


def halved_by_hand(pattern: str, offset: str, side: int, times: int) -> list[int]:
    """Cut a square grid ``times`` times in halves, list by list."""
    rows = [[y * side + x for x in range(side)] for y in range(side)]
    start = 1 if offset == "last" else 0
    for time in range(times):
        if pattern == "2d":
            rows = [row[start::2] for row in rows] if time % 2 == 0 else rows[start::2]
        elif time % 2 == 0:  # one colour of the board: the one that the next lattice belongs to
            board = rows
            rows = [[c for x, c in enumerate(row) if (x + y) % 2 == 0] for y, row in enumerate(board)]
        else:
            rows = [row[start::2] for row in board[start::2]]
    return sorted(cell for row in rows for cell in row)


@pytest.mark.parametrize("pattern", ["2d", "checker"])
@pytest.mark.parametrize("offset", ["last", "first"])
def test_patterns_on_a_square(pattern: Any, offset: Any) -> None:
    for times in range(5):
        method = ADSC(keep=0.5**times, layers=(0,), pattern=pattern, offset=offset)
        assert walk(method, HOST, tokens_of((8, 8)))[0][0] == halved_by_hand(pattern, offset, 8, times)


@quick
@given(shapes, st.floats(0, 1), st.sampled_from(["1d", "2d", "checker"]), st.sampled_from(["last", "first"]))
def test_a_span_does_not_see_the_others(shape: list[tuple[int, int]], keep: float, pattern: Any, offset: Any) -> None:
    method = ADSC(keep=keep, pattern=pattern, offset=offset)
    together = walk(method, HOST, tokens_of(*shape))
    for span, one in enumerate(shape):
        assert [layer[0] for layer in walk(method, HOST, tokens_of(one))] == [layer[span] for layer in together]


# -- on models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["1d", "2d", "checker"])
def test_cache_lengths_follow_from_the_grid_alone(family: str, pattern: Any) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    method = ADSC(keep=0.4, pattern=pattern)
    n = int(tiny.visual_mask(family, batch).sum())
    if family in tiny.tiles.FAMILIES:
        pytest.skip("an image is several spans there")
    side = 1 if family == "llava_pixtral" else 2
    shape = tiny.ONE_SIZE.get(family) or tuple(s // side for s in tiny.GRID)
    host = Host(family, tiny.BLOCKS, tiny.LAYERS, family == "llava")
    expected = [len(layer[0]) for layer in walk(method, host, tokens_of(shape))]  # type: ignore[arg-type]
    with torch.no_grad(), foveate.compress(model, method):
        cache = model(**batch, use_cache=True).past_key_values
    text = batch["input_ids"].shape[1] - n
    held = [min(text + n, tiny.window(family, i) or text + n) for i, n in enumerate(expected)]
    assert [entry.keys.shape[-2] for entry in tiny.entries(cache)] == tiny.of_attention(family, held)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (ADSC(keep=0.1, layers=(3,)), "cannot be reached"),
        (ADSC(layers=(6,)), "there is no decoder layer 6"),
        (ADSC(layers=(-7,)), "there is no decoder layer -7"),
        (ADSC(layers=(2, -4)), "each of them once"),
    ],
)
def test_schedules_that_the_model_cannot_have(method: ADSC, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        foveate.compress(tiny.model("llava"), method)
