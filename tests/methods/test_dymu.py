"""DyMU: which pairs merge against plain loops, and virtual unmerging after all blocks of the tower."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from calls import close
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at
from torch import Tensor
from virtually import in_full

import foveate
from foveate import DyMU, FastV, Host, Reduction, Site, Tokens
from foveate.dial import with_threshold
from foveate.errors import ConfigError
from foveate.handle import host_of
from foveate.lab.options import method_from_words
from foveate.models import family_of
from foveate.ops import merge
from foveate.pruners import merging
from foveate.serving.plan import make_plan

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]
SITE = Site.tower(1, 1.0, mid=True)
quick = settings(max_examples=40, deadline=None)


def plainly(tokens: Tokens, most: list[int], threshold: float) -> tuple[list[int], Tensor]:
    """Who is left, and what of it: in each span at most ``most`` even tokens, nearer than ``threshold`` to their partner."""
    groups, start = list(range(len(tokens))), 0
    for n, limit in zip(tokens.counts, most):
        unit = [key.mean(0) / key.mean(0).norm() for key in tokens.keys[start : start + n]]
        best = []
        for i in range(0, n, 2):
            cosines = [(float(unit[i] @ unit[j]), -j) for j in range(1, n, 2)]
            if cosines and 1 - max(cosines)[0] < threshold:
                best.append((*max(cosines), -i))
        for _, j, i in sorted(best, key=lambda each: (-each[0], -each[2]))[: min(limit, n // 2)]:
            groups[start - i] = start - j
        start += n
    left = [i for i, group in enumerate(groups) if group == i]
    hidden = []
    for i in left:
        members = [m for m, group in enumerate(groups) if group == i]
        weights = tokens.sizes[members]
        hidden.append((tokens.hidden[members] * weights[:, None]).sum(0) / weights.sum())
    return left, torch.stack(hidden)


@quick
@given(grids, st.integers(0, 1000), st.sampled_from([0.0, 0.2, 0.6, 1.0, 3.0]), st.booleans())
def test_merges_by_loops(grid: list[tuple[int, int, int]], seed: int, threshold: float, ties: bool) -> None:
    """Of odd and tiny counts; with equal keys the earlier token merges, into the earlier partner."""
    tokens = tokens_at(grid, seed)
    if ties:
        largest = tokens.keys.mean(1).abs().argmax(-1)
        axes = torch.nn.functional.one_hot(largest, 3) * tokens.keys.mean(1).sign()  # whose cosines are -1, 0 or 1
        tokens = replace(tokens, signals={"keys": axes[:, None].expand(-1, 2, -1)})
    found = DyMU(threshold=threshold).reduce(tokens, SITE)
    left, hidden = plainly(tokens, list(tokens.counts), threshold)
    assert found.keep.tolist() == left
    torch.testing.assert_close(found.hidden, hidden)
    exact = DyMU(keep=0.7).reduce(tokens, replace(SITE, keep=0.7))
    merges = [n - max(kept, n - n // 2) for n, kept in zip(tokens.counts, tokens.budget(0.7))]
    assert exact.keep.tolist() == plainly(tokens, merges, 3.0)[0]


def test_the_published_matching_on_numbers_of_ours() -> None:
    """What the authors' function finds for these keys at a cosine of 0.7 (run on them once): which pairs, and how alike."""
    keys = torch.tensor(
        [[1.0, 0.2], [0.9, 0.1], [0.1, 1.0], [-0.2, 0.8], [0.7, 0.7], [0.3, -1.0], [0.2, -0.7], [-1.0, 0.1], [0.5, 0.4]]
    )
    source, target = merge.bipartite_match(keys, (9,), (4,))
    assert (source.tolist(), target.tolist()) == ([6, 0, 2, 8], [5, 1, 3, 1])  # at 0.9999, 0.9962, 0.9412 and 0.8451
    tokens = replace(tokens_at([(1, 3, 3)], 0), signals={"keys": keys[:, None]})
    assert DyMU(threshold=0.2).reduce(tokens, SITE).keep.tolist() == [1, 3, 4, 5, 7]  # 4 is at 0.78
    found = DyMU(threshold=0.3).reduce(tokens, SITE)  # of five pairs four may merge
    assert found.groups is not None
    assert (found.keep.tolist(), found.groups().tolist()) == ([1, 3, 4, 5, 7], [0, 0, 1, 1, 2, 3, 3, 4, 0])


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_all_members_are_in_their_places_after_all_blocks(family: str) -> None:
    """Virtual unmerging is a full sequence whose members are averaged; it saves rows and no cache."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS, only=1)
    seen: list[Tensor] = []
    with torch.no_grad():
        with foveate.compress(model, DyMU(keep=0.4)) as handle, handle.trace() as recorded:
            norm = tiny.lm(model).layers[0].input_layernorm
            hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            logits = model(**batch).logits
            hook.remove()
            visits, report = recorded().sites, handle.report()
        visual = tiny.visual_mask(family, batch)[0].nonzero().flatten()
        group = torch.arange(len(visual))
        for visit in visits:
            assert visit.groups is not None
            group = visit.groups()[group]
        starts = torch.tensor([0, *visits[0].before]).cumsum(0)

        def spans(counts: tuple[int, ...]) -> Tensor:
            return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))

        keep = visual[starts[spans(visits[-1].after)] + visits[-1].index]
        copies = torch.arange(batch["input_ids"].shape[1])
        copies[visual[starts[spans(visits[0].before)] + visits[0].present]] = keep[group]
        left, of = copies.unique(return_inverse=True)
        assert len(left) == seen[0].shape[1] == report.layer_tokens[0] < len(copies)
        close(logits[0, left], in_full(model, batch, of, seen[0][0])[0, left])
    assert report.kv_ratio == 1.0
    assert report.flops["prefill"] < report.full_flops["prefill"]


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_nothing_merged_is_stock_and_everything_is_halved(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with torch.no_grad():
        stock = model(**batch).logits
        with foveate.compress(model, DyMU(threshold=0.0)):
            close(model(**batch).logits, stock)
        with foveate.compress(model, DyMU(threshold=3.0)) as handle:
            model(**batch)
            for visit in handle.report().visits:
                assert visit.after == tuple(n - n // 2 for n in visit.before)


def test_a_threshold_leaves_each_image_its_own_count() -> None:
    """An even image keeps fewer tokens than a drawn one, and the mean is what was asked for."""
    model = tiny.model("llava")
    inputs = [tiny.inputs("llava", ROWS)]
    method = with_threshold(DyMU(), model, inputs, 0.5)
    assert method.threshold is not None
    assert not method.has_fixed_budget
    flat = {**inputs[0], "pixel_values": inputs[0]["pixel_values"].clone()}
    flat["pixel_values"][0] = 0.5
    with foveate.compress(model, method) as handle, torch.no_grad():
        model(**inputs[0])
        assert handle.report().shares["tokens"] == pytest.approx(0.5, abs=0.03)
        model(**flat)
        even, *drawn = handle.report().visits[-1].after
    assert even < min(drawn)


def best_distances(keys: Tensor, counts: tuple[int, ...]) -> list[float]:
    """How far every even token of each span is from its nearest odd one."""
    found, start = [], 0
    for n in counts:
        unit = [key / key.norm() for key in keys[start : start + n].double()]
        found += [min(1 - float(unit[i] @ unit[j]) for j in range(1, n, 2)) for i in range(0, n, 2) if n > 1]
        start += n
    return sorted(found)


def test_each_block_has_the_threshold_at_which_all_images_merge_as_many_pairs_as_are_to_merge_there() -> None:
    """By plain loops over the keys that a block meets when the blocks before it have merged at theirs."""
    model = tiny.model("llava")
    inputs = [tiny.inputs("llava", ROWS), tiny.inputs("llava", [[3, "image", 5]])]
    found = with_threshold(DyMU(), model, inputs, 0.4)
    assert isinstance(found.threshold, tuple)
    met: dict[int, list[tuple[Tensor, tuple[int, ...]]]] = {}

    class Noted(DyMU):
        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            met.setdefault(site.layer, []).append((tokens.keys.mean(1), tokens.counts))
            return super().reduce(tokens, site)

    with foveate.compress(model, Noted(threshold=found.threshold)), torch.no_grad():
        for each in inputs:
            model(**each)
    whole = sum(len(keys) for keys, _ in met[0])
    assert len(found.threshold) == len(met)
    for (block, share), threshold in zip(merging(range(len(met)), 0.4), found.threshold):
        distances = sorted(d for keys, counts in met[block] for d in best_distances(keys, counts))
        leave = sum(len(keys) for keys, _ in met[block]) - round(share * whole)
        assert 0 < leave < len(distances)
        assert threshold == pytest.approx(distances[leave], abs=1e-5)


def test_a_block_merges_at_its_own_threshold() -> None:
    tokens = tokens_at([(1, 6, 6)], 1)
    method = DyMU(threshold=(0.0, 3.0, 0.2, 0.0))
    for block, one in enumerate((0.0, 3.0, 0.2, 0.0)):
        site = Site.tower(block, 1.0, mid=True)
        assert method.reduce(tokens, site).keep.tolist() == DyMU(threshold=one).reduce(tokens, site).keep.tolist()
    assert foveate.method_from_dict(method.to_dict()) == method
    for words, expected in (("threshold=0.2", 0.2), ("threshold=0.1,0.2", (0.1, 0.2)), ("threshold=[0.3]", (0.3,))):
        assert method_from_words("dymu", None, [words], None) == DyMU(threshold=expected)
    with pytest.raises(
        ConfigError, match="dymu: threshold has 4 numbers, and 3 vision blocks merge: give one for each"
    ):
        method.sites(Host("llava", 3, 6, has_cls=True))


def test_what_cannot_be() -> None:
    model = tiny.model("llava")
    with pytest.raises(ConfigError, match=r"keep=0\.5 and threshold=0\.1 both say how much"):
        DyMU(keep=0.5, threshold=0.1)
    with pytest.raises(ConfigError, match="methods of one sum must agree on positions"):
        foveate.compress(model, DyMU() + FastV())
    with foveate.compress(model, DyMU() + FastV(positions="virtual")):
        pass
    with pytest.raises(ConfigError, match="is the least that it can leave"):
        DyMU(keep=1e-9).sites(Host("llava", 4, 6, has_cls=True))
    with pytest.raises(ConfigError, match="dymu decides by the content of an image"):
        make_plan(DyMU(threshold=0.1, positions="keep"), host_of(model), family_of(model.config), model.config)
