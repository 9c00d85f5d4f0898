"""What a story says, next to what the methods decided."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from pages import Tell
from probes.snapkv import SnapKV

import foveate
from foveate import ADSC, IPCV, LUVC, OIM, VTW, Downsample, DyCoke, FastV, Method, Stride, ToMe, VisionZip
from foveate.errors import ConfigError
from foveate.lab.story import Story, tell
from foveate.lab.story.telling import Act
from foveate.lab.story.view import View
from foveate.runtime.trace import Trace

ROWS: list[list[tiny.Item]] = [[3, "image", 5]]
METHODS = [
    ToMe(keep=0.5),
    OIM(keep=0.5),
    LUVC(),
    VisionZip(keep=0.3),
    IPCV(ratio=0.3, min_tokens=0),
    Downsample(keep=0.5),
    Downsample(keep=0.6) + IPCV(ratio=0.4, min_tokens=0) + FastV(layer=2),
    ToMe(keep=0.7) + FastV(layer=2) + VTW(layer=3),
    ADSC(),
]


def states(story: Story, step: int) -> Counter[str]:
    return Counter("".join(story.frames[number].states for number in story.shown[step]))


def step(story: Story, name: str) -> int:
    return [each.name for each in story.steps].index(name)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "+".join(p.name() for p in method.parts()))
def test_every_family_tells_what_its_sites_decided(family: str, method: Method) -> None:
    """Tokens that go through a step are those that its last site has left; what arrives in the language model are those
    that the tower has left, also where it sees other grids."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with foveate.compress(model, method) as handle, handle.trace() as recorded, torch.no_grad():
        model(**batch)
        story, trace = tell(recorded(), handle.report()), recorded()
    check(story, trace)


def check(story: Story, trace: Trace) -> None:
    entry = step(story, "Language model entry")
    first = {"pixels": 0, "tower": 1, "tower_output": entry - 1, "decoder": entry + 1}
    for visit in trace.sites:
        number = first[visit.site.at] + visit.site.layer
        if visit.site.action == "park":  # of a token, or of its patches
            running = (n * h * w / cells for n, cells, (h, w) in zip(visit.after, visit.before, visit.shapes))
            whole = sum(h * w for h, w in visit.shapes) / story.tokens[number - 1]
            assert story.tokens[number] == pytest.approx(sum(running) / whole, abs=0.01)
        else:
            assert story.tokens[number] == sum(visit.after)
    for tokens, reduction in trace.arrived:
        assert story.tokens[entry] == (len(tokens) if reduction is None else sum(reduction.counts))
    for number in range(len(story.steps)):
        found = states(story, number)
        gone = found["d"] + found["w"] + found["x"]
        cells = sum(found.values())
        assert (story.tokens[number] == 0) == (gone + found["p"] + found["l"] == cells)
    assert len(story.flops) == len(story.kv) == len(story.steps) == len(story.acts)
    assert sum(pair[0] for pair in story.flops if pair) > 0


def test_merging_is_seen_group_by_group(told: Tell) -> None:
    story = told(ToMe(keep=0.5))
    for block, tokens in enumerate((88, 75, 63, 50)):
        number = step(story, f"Vision block {block}")
        frame = story.frames[story.shown[number][0]]
        assert frame.owners is not None
        assert frame.marks is not None
        sizes = Counter(frame.owners)
        assert len(sizes) == tokens == story.tokens[number]
        assert sum(size for size in sizes.values() if size > 1) == frame.states.count("m")
        assert sum(size > 1 for size in sizes.values()) == len(frame.marks)
        assert story.acts[number][0].action == "merge"
        # ToMe's merged tokens stand at one of their members.
        for y, x in frame.marks:
            place = int(y) * frame.width + int(x)
            assert frame.owners[place] == place


def test_a_merged_rectangle_stands_at_its_centroids(told: Tell) -> None:
    story = told(OIM(keep=0.5))
    frame = story.frames[story.shown[step(story, "Tower output")][0]]
    assert frame.owners is not None
    assert frame.marks is not None
    owners = np.array(frame.owners).reshape(frame.height, frame.width)
    centres = {tuple(np.argwhere(owners == token).mean(0) + 0.5) for token in np.unique(owners)}
    for mark in frame.marks:
        assert min(abs(mark[0] - y) + abs(mark[1] - x) for y, x in centres) < 0.02


def test_parked_patches_wait_lend_and_return(told: Tell) -> None:
    story = told(IPCV())
    found = {each.name: states(story, number) for number, each in enumerate(story.steps)}
    assert found["Vision block 0"] == {"a": 400}
    assert found["Vision block 1"] == {"a": 140, "l": 260}, "its attention sees the parked ones"
    assert found["Vision block 2"] == {"a": 140, "p": 260}
    assert found["Tower output"] == found["Decoder layer 9"] == {"a": 140, "r": 260}
    assert story.tokens[step(story, "Vision block 2")] == 35
    (act,) = story.acts[step(story, "Tower output")]
    assert (act.action, act.before, act.after) == ("restore", 35, 100)
    assert all(full == now for now, full in filter(None, story.kv))


def test_withdrawn_tokens_stay_in_the_cache_of_earlier_layers(told: Tell) -> None:
    story = told(VTW(layer=5))
    assert states(story, step(story, "Decoder layer 4")) == {"a": 100}
    assert states(story, step(story, "Decoder layer 5")) == {"w": 100}
    last = story.frames[story.shown[-1][0]]
    assert last.layers == "4" * 100, "half of the layers, of nine"
    kv = [pair for pair in story.kv if pair]
    assert [now < full for now, full in kv] == [False] * 5 + [True] * 5
    flops = [pair for pair in story.flops if pair]
    assert [now < full for now, full in flops] == [False] * 9 + [True] * 5


def test_what_no_layer_reads_is_dropped(told: Tell) -> None:
    story = told(Stride(keep=0.25))
    assert states(story, step(story, "Decoder layer 0")) == {"a": 25, "d": 75}
    assert states(story, step(story, "Language model entry")) == {"a": 100}
    assert story.frames[story.shown[-1][0]].layers is not None


def test_a_smaller_image_is_a_smaller_grid(told: Tell) -> None:
    story = told(Downsample(keep=0.5) + ToMe(keep=0.7))
    first, last = (story.frames[story.shown[number][0]] for number in (0, -1))
    assert (first.height, first.width) == (last.height, last.width) == (7, 7)
    assert first.resized == (0.7, 0.7)
    assert first.states == "a" * 49
    assert story.full_tokens == (100,) * len(story.steps)
    owners = {story.frames[story.shown[number][0]].owners for number in (step(story, "Tower output"), -1)}
    groups = [tuple(np.unique(owner, return_inverse=True)[1].tolist()) for owner in owners if owner is not None]
    assert groups[0] == groups[-1], "the language model's numbers are others, the groups are not"


def test_hidden_in_the_cache(told: Tell) -> None:
    story = told(DyCoke(ratio=1.0, decode_ratio=0.3))
    assert states(story, -1) == {"a": 30, "h": 70}
    assert story.acts[-1][0].action == "hide"


def test_freed_from_caches(told: Tell) -> None:
    """Fainter where fewer layers hold a token; what several caches lose is one act."""
    story = told(Stride(ratio=0.5, layers=(3,)) + SnapKV(ratio=0.2, layers=(0, 1, 4)))
    layers = "".join(story.frames[story.shown[-1][0]].layers or "")
    assert story.acts[-1] == (Act("snapkv", "free", 250, 50, patches=False),)
    n = sum(each.stage == "language" for each in story.steps) - 1
    held = [20, 20, 100, 50, 10, *[50] * (n - 5)]
    assert sum(map(int, layers)) / 9 == pytest.approx(sum(held) / n, abs=6)  # a digit for each cell
    assert states(story, -1) == {"a": 50, "w": 50}


@pytest.mark.parametrize("span", [0, 1])
def test_one_prompt_of_a_batch(span: int) -> None:
    """A row of a batch tells what it tells alone."""
    rows: list[list[tiny.Item]] = [[3, "image", 5], [2, (8, 4), 4]]
    model, method = tiny.model("qwen2_vl"), ToMe(keep=0.6) + VTW(layer=2)
    stories = []
    for batch, chosen in ((tiny.inputs("qwen2_vl", rows), span), (tiny.inputs("qwen2_vl", rows, only=span), None)):
        with foveate.compress(model, method) as handle, handle.trace() as trace, torch.no_grad():
            model(**batch)
            stories.append(tell(trace(), handle.report(), chosen))
    together, alone = stories
    assert together.rows == 2
    for name in ("frames", "shown", "tokens", "full_tokens", "acts"):
        assert getattr(together, name) == getattr(alone, name)


class Sloppy(ToMe):
    """Says nonsense about its groups."""

    def reduce(self, tokens: foveate.Tokens, site: foveate.Site) -> foveate.Reduction:
        reduction = super().reduce(tokens, site)
        object.__setattr__(reduction, "groups", lambda: torch.full((len(tokens),), len(reduction.keep) + 1))
        return reduction


def test_groups_that_are_none(told: Tell) -> None:
    with pytest.raises(ConfigError, match=r"groups has 89, 89, 89 \.\.\., expected 0 to 87, or 88 for a token in none"):
        told(Sloppy(keep=0.5))


def test_patches_of_a_token_that_has_been_merged_are_parked_with_it() -> None:
    """By hand: a grid of 1 x 2 tokens of four patches each; the right one becomes part of the left one, of which the upper
    patches are parked."""
    view = View((1, 2), fine=2)
    view.reduce([0, 1], [0], [0, 0], {}, "d")
    assert view.frame().states == "mmmm" * 2
    assert view.tokens() == 1
    view.park([4, 5], (2, 4))
    assert view.frame().states == "pppp" + "mmmm"
    assert view.frame(lends=True).states == "llll" + "mmmm"
    assert view.tokens() == 0.5
    view.restore()
    frame: Any = view.frame()
    assert frame.states == "mmmm" * 2
    assert frame.marks == ((1.0, 1.0),)
