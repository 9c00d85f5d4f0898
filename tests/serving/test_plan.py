"""Counts said beforehand are those of a run in transformers; what cannot be said beforehand is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate
from foveate import (
    ADSC,
    CLSE,
    DMLLM,
    IPCV,
    LUVC,
    OIM,
    SPU,
    VTW,
    DivPrune,
    Downsample,
    DyCoke,
    DyMU,
    FastV,
    FiCoCoV,
    HoliTom,
    Host,
    Method,
    Random,
    Site,
    Stride,
    ToMe,
    ViTCoP,
    VScan,
)
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.runtime.layout import tokens_of
from foveate.serving.plan import Item, make_plan
from foveate.serving.vllm.columns import Columns
from foveate.serving.vllm.prompt import Prompt
from foveate.serving.vllm.step import Batch, Step

METHODS: list[Method] = [
    Random(keep=0.3),
    Stride(ratio=0.4, layers=(0, 3)),
    FastV(ratio=0.25),
    ADSC(),
    VTW(),
    DivPrune(keep=0.3),
    ToMe(),
    Downsample(keep=0.4),
    OIM(),
    SPU(),
    LUVC(),
    IPCV(),
    LUVC(merge=1) + Random(ratio=0.9, layer=2),
    ViTCoP(),
    VScan(),
    HoliTom(segments="none"),
    DyMU(positions="keep"),
    DMLLM(),
    CLSE(),
    FiCoCoV(),
]
SIZES = [(6, 8), (4, 12), (10, 6)]  # patches


def plan_for(method: Method) -> Any:
    model = tiny.model("qwen2_5_vl")
    return make_plan(method, host_of(model), family_of(model.config), model.config)


def item(height: int, width: int, frames: int = 1) -> Item:
    """Of patches."""
    grid = ((frames, height // 2, width // 2),)
    return Item(grid, grid)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_counts_are_those_of_a_run(method: Method) -> None:
    model, plan = tiny.model("qwen2_5_vl"), plan_for(method)
    for size in SIZES:
        batch = tiny.inputs("qwen2_5_vl", [[3, size, 5]])
        with foveate.compress(model, method) as handle, torch.no_grad():
            model(**batch)
            report = handle.report()
        here = item(*size)
        text = batch["input_ids"].shape[1] - here.cells
        entry, inner = sum(plan.entry_counts(here)), [sum(counts) for counts in plan.inner_counts(here)]
        left = [entry] * tiny.LAYERS
        for layer, n in zip(plan.layers, inner, strict=True):
            left[layer:] = [n] * (tiny.LAYERS - layer)
        assert report.layer_tokens == tuple(text + n for n in left)


def test_an_image_of_which_nothing_would_be_left_is_left_alone() -> None:
    plan = plan_for(Random(keep=0.0))
    assert not plan.shortens(item(2, 4))
    assert plan.entry_counts(item(2, 4)) == (2,)
    plan = plan_for(Random(keep=0.1))  # a small one keeps a token
    assert plan.shortens(item(2, 4))
    assert plan.entry_counts(item(2, 4)) == (1,)


@pytest.mark.parametrize("frames", [1, 5])
def test_later_cuts_of_a_schedule_know_what_was_there_at_its_first(frames: int) -> None:
    """What the engine hands to the layers gives the counts that were planned: the schedule's, rounded once for a video."""
    stages = ((0, 0.7), (2, 0.45), (4, 0.2))
    plan, here = plan_for(SPU(schedule=stages)), item(6, 10, frames)
    assert plan.entry_history(here) == ((15,) * frames,)
    counts = (plan.entry_counts(here), *plan.inner_counts(here))
    assert [sum(each) for each in counts] == [int(15 * frames * share + 0.5) for _, share in stages]
    tokens = replace(tokens_of(here.spans), counts=counts[0], history=plan.entry_history(here))
    for action, planned in zip(plan.inner, counts[1:], strict=True):
        assert tokens.budget(action.site) == planned
        tokens = replace(tokens, counts=planned, history=(*tokens.history, tokens.counts))


@dataclass(frozen=True)
class ByContent(Method):
    """One whose budget nobody knows. A control, not a paper."""

    fixed_budget: ClassVar[bool] = False

    def sites(self, host: Host) -> list[Site]:
        return [Site("decoder", 1)]


@dataclass(frozen=True)
class Asks(Method):
    """One that wants a signal. A control, not a paper."""

    at: Literal["lm_entry", "decoder"] = "decoder"
    signal: str = "text"

    def sites(self, host: Host) -> list[Site]:
        return [Site(self.at, 2 if self.at == "decoder" else 0, signals=(self.signal,))]


@dataclass(frozen=True)
class Reaches(Stride):
    """One whose survivors reach a threshold. A control, not a paper."""

    threshold: float | None = None


@dataclass(frozen=True)
class Remembers(Stride):
    """One that notes something for a later site. A control, not a paper."""

    def reduce(self, tokens: Any, site: Site) -> Any:
        tokens.state["seen"] = True
        return super().reduce(tokens, site)


@pytest.mark.parametrize(
    ("method", "error", "sentence"),
    [
        (ByContent(), ConfigError, "decides by the content of an image"),
        (Reaches(threshold=0.1), ConfigError, "those that reach its threshold, .*: give keep in its place"),
        (Random(positions="renumber"), ConfigError, 'positions="renumber" is not served'),
        (Remembers(), UnsupportedSiteError, "remembers 'seen' from one of its sites to the next"),
        (
            DyCoke(),
            UnsupportedSiteError,
            "acts on the KV cache while decoding, .*: give ratio=0.3 and decode_ratio=1.0",
        ),
        (Random(layer=99), UnsupportedSiteError, "the model has 6 decoder layers"),
        (IPCV() + LUVC(), UnsupportedSiteError, "use one of the two"),
        (Asks(at="lm_entry"), UnsupportedSiteError, "encodes an image before it meets its question"),
        (Asks(at="decoder"), UnsupportedSiteError, "a prompt may come in pieces, an image before its question"),
        (
            Asks(signal="rope"),
            UnsupportedSiteError,
            "gives signals of the visual tokens themselves and of the attention to them",
        ),
        (DyMU(), ConfigError, r'positions="virtual" is not served, .*: use positions="keep"'),
        (DMLLM(layer=2, last=4), UnsupportedSiteError, "a token that has left it does not come back"),
        (DMLLM(how="late"), UnsupportedSiteError, "writes its answer word by word: use how='skip'"),
        (HoliTom(), ConfigError, r'holitom decides by the content of an image .*: give segments="none"'),
        (IPCV(across="budget"), ConfigError, "decides across all images of a call"),
        (IPCV(across="neighbours"), ConfigError, "decides across all images of a call"),
    ],
)
def test_refused(method: Method, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        plan_for(method)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(SIZES), st.integers(1, 3)), max_size=4),
    st.integers(1, 9),
    st.sampled_from([Random(keep=0.5), ADSC(layers=(1, 3)), LUVC()]),
)
def test_places(pieces: list[tuple[int, tuple[int, int], int]], tail: int, method: Method) -> None:
    """Against a prompt written out token by token; of a video, the number of a frame stands before it."""
    plan = plan_for(method)
    full: list[bool] = []  # is the token there?
    dropped: list[list[bool]] = []  # of those that are: has it left from each layer on?
    items, features = [], []
    for words, size, number in pieces:
        full += [True] * words
        dropped += [[False] * len(plan.layers)] * words
        here, first, begin, inside = item(*size, number), len(full), len(dropped), []
        for i, (cells, kept) in enumerate(zip(here.spans.sizes, plan.entry_counts(here), strict=True)):
            text = [True] * (number > 1)
            full += text + [cell < kept for cell in range(cells)]
            inside += [False] * len(text) + [True] * cells
            dropped += [[False] * len(plan.layers)] * len(text)
            dropped += [[cell >= counts[i] for counts in plan.inner_counts(here)] for cell in range(kept)]
        where = SimpleNamespace(offset=begin, length=len(dropped) - begin)
        items.append((here, SimpleNamespace(mm_position=where), np.array(inside)))
        features.append(first + np.flatnonzero(inside))
    full += [True] * tail
    dropped += [[False] * len(plan.layers)] * tail
    prompt = Prompt(plan, items)
    places = np.flatnonzero(full)
    visual = np.zeros(len(places), dtype=bool)
    for each, want in zip(prompt.placed, features, strict=True):
        assert (each.full == want).all()
        assert (places[each.places] == want[np.array(full)[want]]).all()
        visual[each.places] = True
    shifted = np.arange(len(places)) + prompt.missing_before(0, len(places))
    assert (shifted[~visual] == places[~visual]).all()
    ranges = [feature.mm_position for _, feature, _ in items]
    for place in range(len(places) + 1):
        if not any(where.offset < place < where.offset + where.length for where in ranges):  # images come whole
            gone = np.array(dropped[:place], dtype=int).reshape(place, len(plan.layers)).sum(0)
            assert (prompt.dropped[:, prompt.ended(place)] == gone).all()


@pytest.mark.parametrize("chunks", [(40,), (9, 12, 12, 7), (21, 19), (9, 24, 1, 1, 1, 1, 1, 1, 1)])
def test_a_step_asks_nothing_of_the_one_before(chunks: tuple[int, ...]) -> None:
    """Whatever the pieces are that two requests come in, a step begins where the one before has ended; so does a new try."""
    plan, here = plan_for(ADSC(layers=(1, 3), keep=0.5)), [item(6, 8), item(4, 12)]
    where = [SimpleNamespace(mm_position=SimpleNamespace(offset=at, length=12)) for at in (9, 21)]
    prompt = Prompt(plan, [(i, w, np.ones(12, dtype=bool)) for i, w in zip(here, where, strict=True)])
    assert prompt.ends.tolist() == [21, 33]
    requests = [SimpleNamespace(num_prompt_tokens=34, mm_features=[None] * 2) for _ in range(2)]
    batch = Batch(requests, [prompt, prompt])
    for _ in range(2):  # the second time as after a preemption
        start, ended = np.zeros(2, dtype=np.int64), None
        for n in chunks:
            step = Step(plan, batch, start, np.array([n, n]))
            assert ended is None or all((a == b).all() for a, b in zip(step.before, ended, strict=True))
            assert all((each >= 0).all() for each in step.planned)
            start, ended = start + n, step.after
        gone = prompt.dropped[:, -1]
        assert [each.tolist() for each in ended] == [[40 - each] * 2 for each in gone]
        assert step.generated.tolist() == [6, 6]
    assert batch.still(requests)
    assert not batch.still(requests[:1])  # one was cancelled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_columns_survive_any_dtype(dtype: torch.dtype) -> None:
    n = 70_000
    columns = Columns(torch.arange(n) - 1, torch.arange(n).flip(0), torch.rand(n) * 9, torch.rand(n, 2) * 300)
    features = torch.randn(n, 6).to(dtype)
    got, back = Columns.split(columns.beside(features)[5:])
    assert torch.equal(got, features[5:])
    for name in ("cell", "row", "sizes", "coords"):
        assert torch.equal(getattr(back, name), getattr(columns, name)[5:])
