"""IPCV against a plain re-derivation in loops: the stock tower's own modules called one by one, as the paper says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, video_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import foveate
from foveate import IPCV, Host
from foveate.schedule import survivors


def ratio_of(method: IPCV) -> float:
    return 0.35 if method.ratio is None else method.ratio


@pytest.fixture(params=[family for family in tiny.FAMILIES if family not in tiny.cpm.FAMILIES])  # see test_merger.py
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Plain:
    """The method in loops, one patch after the other.

    ``spans``: the packed rows of each span; ``frames``: how many spans, of one size, each image or video has.
    """

    def __init__(
        self, method: IPCV, before: Tensor, now: Tensor, spans: list[list[int]], frames: Sequence[int] = (1,)
    ) -> None:
        sign = 1 if method.changed == "most" else -1
        score = [sign * norm for norm in (now - before).norm(dim=-1).tolist()]
        kept: list[int] = []
        everything = [[i for span in spans for i in span]]
        quota = {0: survivors(len(everything[0]), ratio_of(method))} if method.across == "budget" else {}
        for t in () if quota else frames:
            total = survivors(t * len(spans[len(quota)]), ratio_of(method))
            ends = [math.floor(total * f / t + 0.5) for f in range(t + 1)]
            quota |= {len(quota) + f: ends[f + 1] - ends[f] for f in range(t)}
        for which, pool in enumerate(everything if method.across == "budget" else spans):
            n = max(quota[which], 1)
            ranked = sorted(pool, key=lambda i: -score[i])
            if method.across == "budget":
                firsts = [max(span, key=lambda i: score[i]) for span in spans]
                n = max(n, len(spans))
                ranked = firsts + [i for i in ranked if i not in firsts]
            kept += pool if len(pool) < method.min_tokens else ranked[:n]
        self.kept = sorted(kept)
        self.frozen = now.clone()
        self.friends: dict[int, list[int]] = {}
        for pool in spans if method.across == "nothing" else everything:
            for i in set(pool) - set(kept):
                near = sorted((j for j in pool if j in kept), key=lambda j: float((now[i] - now[j]).norm()))
                self.friends[i] = near[: method.neighbours]

    def all(self, h: Tensor) -> Tensor:
        """Every patch, now that the kept ones are ``h``."""
        out = self.frozen.clone()
        change = {i: h[rank] - self.frozen[i] for rank, i in enumerate(self.kept)}
        for i, delta in change.items():
            out[i] = self.frozen[i] + delta
        for i, near in self.friends.items():
            out[i] = self.frozen[i] + sum(change[j] for j in near) / len(near)
        return out


def recorded(module: nn.Module, modules: list[nn.Module], call: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments that each of ``modules`` is called with."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hooks = [m.register_forward_pre_hook(lambda m, a, k: seen.append((a, k)), with_kwargs=True) for m in modules]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return seen


def slow_qwen(
    method: IPCV, blocks: list[Any], calls: list[Any], depths: tuple[int, int], lengths: Sequence[int]
) -> Tensor:
    """What the merger gets: rows in the order of the blocks."""
    start, stabilise = depths
    x = previous = calls[0][0][0]
    # Some block attends to whole frames; those are the spans.
    frames = max((kwargs["cu_seqlens"] for _, kwargs in calls), key=lambda cu: -len(cu)).tolist()
    spans = [list(range(a, b)) for a, b in zip(frames, frames[1:])]
    plain: Plain | None = None
    for i, (block, (_, kwargs)) in enumerate(zip(blocks, calls)):
        if i == start:
            plain = Plain(method, previous, x, spans, lengths)
            x = x[plain.kept]
        if plain is None:
            previous, x = x, block(x, **kwargs)
        elif i < start + stabilise:
            whole = plain.all(x)
            y = whole + block.attn(block.norm1(whole), **kwargs)
            x = y[plain.kept]
            x = x + block.mlp(block.norm2(x))
        else:
            ends = kwargs["cu_seqlens"].tolist()
            sizes = [sum(a <= j < b for j in plain.kept) for a, b in zip(ends, ends[1:])]
            cu = torch.tensor([0, *[s for s in sizes if s]]).cumsum(0).int()
            rotary = kwargs["position_embeddings"]  # in older transformers perhaps angles alone
            alone = isinstance(rotary, Tensor)
            rotary = rotary[plain.kept] if alone else tuple(each[plain.kept] for each in rotary)
            x = block(x, cu_seqlens=cu, position_embeddings=rotary)
    assert plain is not None
    return plain.all(x)


def slow_llava(method: IPCV, blocks: list[Any], first: Tensor, depths: tuple[int, int]) -> Tensor:
    """What the projector gets. Every image alone; its CLS token goes on and is nobody's neighbour."""
    start, stabilise = depths
    images = []
    for image in first:
        x = previous = image[None]
        plain: Plain | None = None
        for i, block in enumerate(blocks):
            if i == start:
                plain = Plain(method, previous[0, 1:], x[0, 1:], [list(range(x.shape[1] - 1))])
                x = torch.cat([x[:, :1], x[:, 1:][:, plain.kept]], 1)
            previous = x
            if plain is not None and i < start + stabilise:
                whole = torch.cat([x[:, :1], plain.all(x[0, 1:])[None]], 1)
                y = whole + block.self_attn(block.layer_norm1(whole), attention_mask=None)[0]
                x = y[:, [0, *(1 + j for j in plain.kept)]]
                x = x + block.mlp(block.layer_norm2(x))
            else:
                x = block(x, attention_mask=None)
        assert plain is not None
        images.append(plain.all(x[0, 1:]))
    return torch.stack(images)


METHODS = [
    IPCV(),
    IPCV(ratio=0.2, block=2, stabilise=2, neighbours=3, min_tokens=0),
    IPCV(ratio=0.5, stabilise=3, neighbours=1, min_tokens=40),
    IPCV(ratio=0.0, stabilise=0, min_tokens=0),
    IPCV(ratio=0.3, block=3, stabilise=1, changed="least"),
    IPCV(ratio=0.25, stabilise=2, neighbours=4, across="budget"),
    IPCV(ratio=0.2, stabilise=1, neighbours=4, across="neighbours", min_tokens=0),
    IPCV(ratio=0.0, stabilise=1, neighbours=7, across="budget"),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("video", [False, True])
def test_the_whole_tower_as_in_plain_loops(family: str, impl: str, method: IPCV, video: bool) -> None:
    if family not in tiny.PACKED and (video or method.across != "nothing" or family not in tiny.LLAVA):
        return  # a LLaVA image is run alone here
    model = tiny.model(family, impl)
    batch = tiny.inputs(family, [[3, (2, 4, 8), 5], [2, (3, 4, 8), 4]] if video else ROWS[family])
    host = Host(family, tiny.BLOCKS, tiny.LAYERS, family in tiny.CLS)
    blocks, end = tiny.blocks(model), tiny.end(model)
    calls = recorded(model, blocks, lambda: model(**batch))
    with torch.no_grad():
        if family in tiny.LLAVA:
            expected = slow_llava(method, blocks, calls[0][0][0], method.depths(host))
        else:
            ((args, kwargs),) = recorded(model, [tiny.tower(model)], lambda: model(**batch))
            grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]  # some stock code gives every frame a row
            expected = slow_qwen(method, blocks, calls, method.depths(host), grid[:, 0].tolist())
    with foveate.compress(model, method):
        ((args, _),) = recorded(model, [end], lambda: model(**batch))
    close(args[0], expected)


def test_global_budget_over_ragged_images_of_a_padded_tower() -> None:
    """Images keep different numbers of patches: a short row's padding must not be seen. One image at a time, in effect."""
    model = tiny.model("llava")
    batch = tiny.inputs("llava", ROWS["llava"])
    with foveate.compress(model, IPCV(across="budget", stabilise=2)) as handle, torch.no_grad():
        model(**batch)
        counts = handle.report().visits[0].after
        together = model(**batch, logits_to_keep=1).logits
    assert len(set(counts)) > 1, counts
    assert sum(counts) == survivors(3 * 36, 0.35)
    assert together.isfinite().all()


@pytest.mark.parametrize("family", tiny.PACKED)
def test_a_patch_at_the_start_of_a_segment_is_counted_there(family: str) -> None:
    """The first patch of every frame stays: it belongs to its own frame, not to the one before it."""
    model, batch = tiny.model(family), tiny.inputs(family, video_rows(family))
    from foveate.runtime.layout import frames, tokens_of
    from foveate.runtime.packed import Packed
    from foveate.tokens import Reduction

    tokens = tokens_of(frames([(3, 2, 2)]))
    layout, _ = Packed(1, 12, tokens).reduce(Reduction(torch.tensor([0, 1, 4, 5, 8, 11]), (2, 2, 2)))
    assert layout.seqlens(torch.tensor([0, 4, 8, 12])).tolist() == [0, 2, 4, 6]
    with foveate.compress(model, IPCV(stabilise=1, min_tokens=0)) as handle, torch.no_grad():
        model(**batch)
        report = handle.report()
    for visit in report.visits[::2]:
        assert all(abs(kept - 0.35 * n) < 1 for kept, n in zip(visit.after, visit.before, strict=True))


def test_short_spans_stay_whole(family: str) -> None:
    """Bit-equal to stock where every span is short; in a mixed batch, the short ones are what they are alone."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    stock = tiny.text_logits(model, batch)
    with foveate.compress(model, IPCV(ratio=0.1, min_tokens=65)) as handle:
        assert torch.equal(tiny.text_logits(model, batch), stock)
        assert handle.report().flops == handle.report().full_flops
    if family not in tiny.PACKED:
        return
    with foveate.compress(model, IPCV(ratio=0.1, min_tokens=40)) as handle, torch.no_grad():
        model(**batch)
        assert handle.report().visits[0].after == (6, 5, 32)  # of 64, 48 and 32


def test_it_can_be_trained_through(family: str) -> None:
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS[family])
    with foveate.compress(model, IPCV(stabilise=2)):
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
    tower = tiny.tower(model)
    gradients = [p.grad for name, p in tower.named_parameters() if p.grad is not None and "post_" not in name]
    assert len(gradients) > 10
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    model, batch = tiny.model(family, fresh=True).to(dtype), tiny.inputs(family, ROWS[family])
    with foveate.compress(model, IPCV(stabilise=2)):
        assert tiny.text_logits(model, batch).isfinite().all()


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.booleans())
def test_depths_fit_every_tower(blocks: int, has_cls: bool) -> None:
    host = Host("any", blocks, 8, has_cls)
    sites = IPCV().sites(host)
    attend = [site.layer for site in sites if site.action == "attend"]
    assert 1 <= sites[0].layer < blocks
    assert attend == list(range(sites[0].layer, sites[0].layer + len(attend)))
    assert 1 <= len(attend) <= blocks - sites[0].layer


@pytest.mark.parametrize(
    ("blocks", "has_cls", "depths"),
    [
        (32, False, (3, 7)),
        (27, False, (3, 7)),
        (24, True, (7, 3)),
        (45, True, (7, 3)),
        (23, True, (7, 3)),
        (4, False, (1, 1)),
    ],
)
def test_depths_of_the_encoders_that_the_authors_ran(blocks: int, has_cls: bool, depths: tuple[int, int]) -> None:
    assert IPCV().depths(Host("any", blocks, 8, has_cls)) == depths


def test_the_dial_turns_flops_and_not_tokens(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    costs, tokens = [], []
    for keep in (1 / tiny.BLOCKS, 0.4, 0.6, 0.8, 1.0):
        with foveate.compress(model, IPCV(keep=keep)) as handle, torch.no_grad():
            model(**batch)
            costs.append(handle.report().flops_ratio)
            tokens.append(handle.report().mean_tokens)
    assert costs == sorted(costs)
    assert costs[-1] == 1.0
    assert len(set(tokens)) == 1
