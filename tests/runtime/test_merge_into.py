"""Merging into survivors on a model: tokens that join another frame, sizes that later methods see, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from calls import close
from contract import PROPERTIES, Property
from probes.frames import Still
from torch import Tensor

import foveate
from foveate import Host, Method, Reduction, Site, Tokens, VisionZip
from foveate.errors import ConfigError
from foveate.lab.story import tell

VIDEO: list[list[tiny.Item]] = [[2, (3, 4, 8), 3], [3, (2, 8, 4), 2, "image"]]


def deciding(decide: Callable[[Tokens], Reduction], site: Site) -> Method:
    """A method that does what ``decide`` says, at one site."""

    class Mine(Method):
        def sites(self, host: Host) -> list[Site]:
            return [site]

        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            return decide(tokens)

    return Mine()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda t, k: torch.zeros(len(t)), r"group is float32 \(32,\), expected int64 \(32,\)"),
        (lambda t, k: torch.zeros(3).long(), r"group is int64 \(3,\), expected int64 \(32,\)"),
        (lambda t, k: torch.full((len(t),), 5), "group has 5, expected 0 to 1, or 2 for a token that is dropped"),
        (lambda t, k: torch.zeros(len(t)).long(), "survivor 1 is in group 0, expected it in its own, 1"),
        (
            lambda t, k: t.segment.index_fill(0, torch.tensor([20]), 0),
            "Mine.reduce at decoder 1: token 20 joins token 0, which is of another image",
        ),
    ],
)
def test_groups_that_cannot_be(answer: Callable[[Tokens, Tensor], Tensor], sentence: str) -> None:
    def reduce(tokens: Tokens) -> Reduction:
        keep = torch.tensor([0, tokens.counts[0]])
        return tokens.merge_into(keep, (1, 1), answer(tokens, keep))

    model, batch = tiny.model("qwen2_vl"), tiny.inputs("qwen2_vl", [[3, (8, 8), 4, (8, 8)]])
    with foveate.compress(model, deciding(reduce, Site("decoder", 1))), pytest.raises(ConfigError, match=sentence):
        model(**batch)


PLACES = [Still(), Still("tower", 2, "mean"), Still("lm_entry"), Still("decoder", 2, "sum")]


@pytest.mark.parametrize("method", PLACES, ids=lambda method: method.at)
def test_frames_are_merged_into_the_first(method: Still) -> None:
    """Each row alone, and what the report says: groups cross frames, and frames are left empty."""
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", VIDEO)
    with torch.no_grad(), foveate.compress(model, method) as handle, handle.trace() as trace:
        together = model(**batch).logits
        visit = next(visit for visit in handle.report().visits if len(visit.before) > 1)
        assert [bool(n) for n in visit.after[:5]].count(True) in (2, 3)  # of five frames, and perhaps the image's
        for i in range(len(VIDEO)):
            alone = tiny.inputs("qwen2_5_vl", VIDEO, only=i)
            text = ~tiny.visual_mask("qwen2_5_vl", alone)[0]
            close(together[i][batch["attention_mask"][i].bool()][text], model(**alone).logits[0][text])
            if i == 0:  # a video alone
                acts = [act for step in tell(trace(), handle.report()).acts for act in step]
                assert [(act.action, act.before, act.after) for act in acts] == [("merge", 24, 8)]


def test_equal_frames_are_as_one() -> None:
    """The mean of frames that are alike is each of them: at the first layer, as if the others had been left out."""
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[2, (3, 4, 8), 3]])
    n = len(batch["pixel_values_videos"]) // 3
    batch["pixel_values_videos"] = batch["pixel_values_videos"][:n].repeat(3, 1)
    first = deciding(lambda t: Reduction(torch.arange(t.counts[0]), (t.counts[0], 0, 0)), Site("lm_entry"))
    text = ~tiny.visual_mask("qwen2_5_vl", batch)[0]
    with torch.no_grad():
        with foveate.compress(model, first):
            wanted = model(**batch).logits[0][text]
        with foveate.compress(model, Still("lm_entry")):
            close(model(**batch).logits[0][text], wanted)


def test_contextual_tokens_say_for_how_many_they_stand() -> None:
    """A method after VisionZip knows sizes, which add up to the image's tokens."""
    seen: list[Tensor] = []

    def look(tokens: Tokens) -> Reduction:
        seen.append(tokens.sizes)
        return tokens.keep_best(tokens.hidden[:, 0], 1.0)

    model, batch = tiny.model("llava"), tiny.inputs("llava", [[2, "image", 3]])
    with (
        torch.no_grad(),
        foveate.compress(model, VisionZip(keep=0.5, contextual=0.5) + deciding(look, Site("lm_entry"))),
    ):
        model(**batch)
    assert float(seen[0].sum()) == tiny.visual_mask("llava", batch).sum()
    assert float(seen[0].max()) > 1


@pytest.mark.parametrize("check", PROPERTIES)
def test_contract(check: Property) -> None:
    check("qwen2_5_vl", Still("tower", 2))
