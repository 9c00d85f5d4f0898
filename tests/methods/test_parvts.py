"""ParVTS: which tokens are the subject, and that the two groups do not see each other, against a mask written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from answers.test_sight import by_hand
from calls import close, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import DivPrune, Host, ParVTS, Site, VisPruner
from foveate.answers import Sight
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.serving.plan import make_plan

HOST = Host("llava", blocks=23, layers=32, has_cls=True)


@settings(max_examples=40, deadline=None)
@given(grids, st.integers(0, 1000), st.sampled_from([0.1, 0.5, 0.9]), st.booleans(), st.booleans())
def test_groups_by_loops(grid: list[tuple[int, int, int]], seed: int, ratio: float, thinned: bool, ties: bool) -> None:
    """The subject is farthest from the mean of its image or frame, and stays at the cut, though tokens have left in between; of
    tokens that are equally far the earlier one is it."""
    tokens, method = tokens_at(grid, seed), ParVTS(layer=2, ratio=ratio)
    if ties:
        tokens = replace(
            tokens, hidden=tokens.hidden[:, :1].round().clamp(0, 2) ** 2 * torch.tensor([1.0, 0, 0, 0, 2, 0])
        )
    sight = method.answer(tokens, Site.sight(keep=ratio))
    assert isinstance(sight, Sight)
    start, subject = 0, []
    for n, budget in zip(tokens.counts, tokens.budget(ratio)):
        x = tokens.hidden[start : start + n].double()
        far = (x - x.mean(0)).norm(dim=-1)
        subject += sorted(sorted(range(start, start + n), key=lambda i: -float(far[i - start]))[:budget])
        start += n
    assert (sight.group == 0).nonzero().flatten().tolist() == subject
    assert sight.sees.tolist() == [[True, False, True], [False, True, True], [True, True, True]]
    later, names = tokens, tokens.name
    if thinned:
        left = tokens.keep_mask(torch.arange(len(tokens)) % 3 > 0)
        later = tokens.select(left.keep, left.counts)
    later = replace(later, hidden=torch.zeros_like(later.hidden))  # what they are there does not matter
    score = method.score(later, Site.decoder(2, ratio))
    expected = {int(name): float(x) for name, x in zip(names, method.score(tokens, Site.decoder(2, ratio)))}
    assert score.tolist() == [expected[int(name)] for name in later.name]
    if not thinned:
        assert method.reduce(later, Site.decoder(2, ratio)).keep.tolist() == subject


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_is_a_mask_and_then_a_cut(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5], [2, "image", 4, "image", 7]])
    with torch.no_grad():
        with foveate.compress(model, ParVTS(layer=3, ratio=0.4)) as handle:
            logits = model(**batch).logits
            (visit,) = [each for each in handle.report().visits if each.site == "decoder 3"]
        visual = tiny.visual_mask(family, batch)
        kept = [set(each) for each in visit.kept]
        images: list[list[set[int]]] = [[kept[0]], [kept[1], kept[2]]]
        subject: list[dict[int, bool]] = []
        for row, of_row in enumerate(images):
            number, last, rank, told = -1, False, 0, {}
            for place, here in enumerate(visual[row].tolist()):
                number, rank = (number + 1, 0) if here and not last else (number, rank + 1)
                last = here
                if here:
                    told[place] = rank in of_row[number]
            subject.append(told)

        for row in range(2):
            alone = tiny.inputs(family, [[3, "image", 5], [2, "image", 4, "image", 7]], only=row)
            shift = visual.shape[1] - alone["input_ids"].shape[1]
            told = {place - shift: value for place, value in subject[row].items()}

            def rule(layer: int, i: int, j: int, visual: list[bool], rank: list[int], told: dict = told) -> bool:  # type: ignore[type-arg]
                if layer >= 3:
                    return not visual[j] or told[j]
                return not (visual[i] and visual[j]) or told[i] == told[j]

            expected = by_hand(family, model, alone, rule)[text_of(family, alone)]
            close(logits[row : row + 1, shift:][text_of(family, alone)], expected)


@pytest.mark.parametrize("family", tiny.WHOLE)
@pytest.mark.parametrize("layer", [0, 3])
def test_the_subject_may_be_what_the_tower_looks_at(family: str, layer: int) -> None:
    """The same tokens as `VisPruner` takes for important."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5], [2, "image", 4, "image", 7]])
    with torch.no_grad():
        with foveate.compress(model, VisPruner(keep=0.4, important=1.0)) as handle:
            model(**batch)
            expected = [sorted(kept) for kept in handle.report().visits[-1].kept]
        with foveate.compress(model, ParVTS(layer=layer, ratio=0.4, subject="attention")) as handle:
            model(**batch)
            assert [
                sorted(kept) for kept in handle.report().visits[-1].kept
            ] == expected  # (a tower has an order of its own)


def test_one_group_alone_needs_no_sight() -> None:
    assert [str(site) for site in ParVTS().sites(HOST)] == ["lm_entry (sight)", "decoder 3"]
    assert [str(site) for site in ParVTS(keep=1.0).sites(HOST)] == ["decoder 3"]
    assert [str(site) for site in ParVTS(ratio=0.0).sites(HOST)] == ["decoder 3"]
    assert [str(site) for site in ParVTS(layer=0).sites(HOST)] == ["decoder 0"]
    assert ParVTS().mean(HOST) == pytest.approx((3 + 29 / 9) / 32)


def test_what_cannot_be() -> None:
    model = tiny.model("llava")
    with pytest.raises(ConfigError, match=r"0\.09375 is the least"):
        ParVTS(layer=3, keep=0.05).sites(HOST)
    with pytest.raises(UnsupportedSiteError, match="there is no decoder layer 40"):
        ParVTS(layer=40).sites(HOST)
    with pytest.raises(UnsupportedSiteError, match="only one method of a sum can say who sees whom"):
        foveate.compress(model, ParVTS() + foveate.RedundancyLens())
    with pytest.raises(UnsupportedSiteError, match="kernels of this engine take no such mask"):
        make_plan(ParVTS(), host_of(model), family_of(model.config), model.config)
    with foveate.compress(model, DivPrune(keep=0.8) + ParVTS()):
        pass
