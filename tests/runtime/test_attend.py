"""Attention that sees parked tokens: exact when they are what they would have been, on every tower and kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import tiny
import torch
from calls import ROWS, close, video_rows
from torch import Tensor, nn

import foveate
from foveate import IPCV, Host, Method, Parked, Reduction, Site, Tokens
from foveate.models import list_families
from foveate.runtime.parking import Attending
from foveate.runtime.signals import Probe, Reading


@pytest.fixture(params=[family for family in tiny.FAMILIES if family not in tiny.cpm.FAMILIES])  # see test_merger.py
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass(frozen=True)
class Seer(Method):
    """Parks most patches, differently in every span, and knows what they would have become: it has seen a stock run."""

    first: int = 1
    unit: str = "patch"  # type: ignore[assignment,misc]
    truth: ClassVar[list[Tensor]] = []  # what `restore` shall say, in order of the questions
    saw: ClassVar[list[Tokens]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        unit: Any = self.unit
        return [
            Site("tower", self.first, action="park", unit=unit),
            *(Site("tower", i, action="attend") for i in range(self.first, host.blocks)),
            Site("tower_output", action="restore"),
        ]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        type(self).saw.append(tokens)
        return tokens.keep_mask((tokens.index * 7 + tokens.segment) % 5 == 0)

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        truth = type(self).truth.pop(0).reshape(parked.tokens.hidden.shape)
        close(tokens.hidden, truth[parked.keep])  # the kept ones are what they would have been, too
        return truth.index_copy(0, parked.keep, tokens.hidden)


def stock_states(family: str, model: Any, batch: dict[str, Tensor], first: int) -> list[Tensor]:
    """Patches before block ``first`` and every later one, where features are taken between two blocks, and at the tower's
    output."""
    blocks, end = tiny.blocks(model)[first:], tiny.end(model)
    taps = [tap for tap, i in taps_of(model) if i >= first]
    spec, states = tiny.SPECS[family].tower, list[Tensor]()

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        patches = x[:, 1:] if family in tiny.CLS and module is not end else x
        inside = spec.joins == "inside" and spec.merger is None
        if inside or (family in tiny.tiles.JOINED and module is not end):  # as methods see them
            side = int(patches.shape[1] ** 0.5) // 2
            patches = patches.view(-1, side, 2, side, 2, patches.shape[-1]).transpose(2, 3)
        if family == "mistral3":
            patches = by_units(patches.flatten(0, -2), batch["image_sizes"])
        if family in tiny.gemma4.FAMILIES:
            places = batch["image_position_ids"]
            there = patches[(places >= 0).all(-1)]
            patches = by_units(there, (places.amax(1) + 1).flip(1) * tiny.PATCH)
        states.append(patches.flatten(0, -2))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in [*blocks, *taps, end]]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return states


def by_units(x: Tensor, sizes: Tensor) -> Tensor:
    """Rows of the patches of several images, each in raster order, 2x2 block after block."""
    shapes = (sizes // tiny.PATCH).tolist()
    parts = x.split([height * width for height, width in shapes])
    return torch.cat(
        [part.view(h // 2, 2, w // 2, 2, -1).transpose(1, 2).flatten(0, 3) for part, (h, w) in zip(parts, shapes)]
    )


def taps_of(model: Any) -> list[tuple[nn.Module, int]]:
    """Modules that make features of what a block puts out, and the number of that block."""
    vision = tiny.tower(model)
    return list(zip(getattr(vision, "deepstack_merger_list", []), getattr(vision, "deepstack_visual_indexes", [])))


@pytest.mark.parametrize("unit", ["patch", "merge"])
@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("video", [False, True])
def test_true_parked_tokens_make_a_dense_tower(family: str, impl: str, unit: str, first: int, video: bool) -> None:
    if video and family not in tiny.PACKED:
        return
    model, batch = tiny.model(family, impl), tiny.inputs(family, video_rows(family) if video else ROWS[family])
    stock = tiny.text_logits(model, batch)
    Seer.truth[:] = stock_states(family, model, batch, first)
    with foveate.compress(model, Seer(first=first, unit=unit)):
        close(tiny.text_logits(model, batch), stock)
    assert not Seer.truth


@dataclass(frozen=True)
class Hear(Method):
    """Notes the signals of all tokens at the tower's output."""

    signals: tuple[str, ...] = ()
    heard: ClassVar[list[Tokens]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        signals: Any = (*self.signals, "cls_row") if host.has_cls else self.signals
        return [Site("tower_output", signals=signals)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        type(self).heard.append(tokens)
        return Reduction(torch.arange(len(tokens)), tokens.counts)


def test_signals_of_all_tokens_after_they_are_back(family: str, impl: str) -> None:
    """The last block's attention is read with the parked tokens in it, so that a method after it can rank all of them."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    listen = Hear(signals=("keys", "values", "received", "residual"))
    Hear.heard.clear()
    with torch.no_grad():
        with foveate.compress(model, listen):
            model(**batch)
        for method in (Seer() + listen, IPCV(stabilise=0) + listen, IPCV() + listen):
            if isinstance(method.parts()[0], Seer):
                # Asked in the three blocks and at every tap, at the output for the residual's beginning, and for the end.
                *states, end = stock_states(family, model, batch, 1)
                tapped = any(i == tiny.BLOCKS - 1 for _, i in taps_of(model))
                Seer.truth[:] = [*states, states[-2 if tapped else -1], end]
            with foveate.compress(model, method):
                model(**batch)
    dense, seen, *ours = Hear.heard
    for name in ("keys", "values", "residual", *(["cls_row"] if family in tiny.CLS else [])):
        close(seen.signals[name], dense.signals[name])
        for tokens in ours:
            assert tokens.signals[name].shape == dense.signals[name].shape
    for tokens in (seen, *ours):  # from the queries of kept tokens only
        assert tokens.received.shape == dense.received.shape
        assert tokens.received.isfinite().all()
        # A window may be without a kept token.
        assert bool((tokens.received > 0).all()) or family in tiny.packed.WINDOWS


class Other(nn.Linear):
    """A projection that may not be cut in two, for all that the runtime knows."""


def test_projections_that_are_no_plain_linear_layer(family: str, impl: str) -> None:
    model, batch = tiny.model(family, impl, fresh=True), tiny.inputs(family, ROWS[family])
    with foveate.compress(model, IPCV(stabilise=3)) as handle:
        plain, flops = tiny.text_logits(model, batch), handle.report().flops["tower"]
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Other
        close(tiny.text_logits(model, batch), plain, 1e-5)
        one = list_families()[family].tower.fused  # keys come from the same projection
        assert (handle.report().flops["tower"] > flops) == one


def test_flash_kernels_get_queries_and_keys_of_different_lengths() -> None:
    """Flash kernels take a packed tower in one call, with cumulative lengths: those of the queries become our own."""
    rows, kept = torch.randn(9, 4), torch.tensor([1, 2, 7, 8])
    whole, own = torch.tensor([0, 3, 5, 9], dtype=torch.int32), torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))

    def kernel(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        out = []
        ends = [kwargs[f"cu_seq_lens_{x}"].tolist() for x in "qk"]
        for a, b, c, d in zip(ends[0], ends[0][1:], ends[1], ends[1][1:]):
            out.append(nn.functional.scaled_dot_product_attention(query[:, :, a:b], key[:, :, c:d], value[:, :, c:d]))
        return torch.cat(out, 2).transpose(1, 2), None

    lengths = {"cu_seq_lens_q": whole, "cu_seq_lens_k": whole, "is_causal": False, "scaling": 8**-0.5}
    dense, _ = kernel(None, q, k, v, None, **lengths)
    reading = Reading(received=True, attending=Attending(rows, kept, own, own.tolist(), True), width=9)
    module = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"))
    out, _ = Probe(lambda: reading).attend(kernel, module, q, k, v, None, dict(lengths))
    close(out[:, kept], dense[:, kept], 1e-6)
    assert out.shape == dense.shape
    parts = []
    for rows_of, (a, b) in zip(([1, 2], [], [7, 8]), ((0, 3), (3, 5), (5, 9))):
        paid = [(q[0, h, i] @ k[0, h, a:b].T * 8**-0.5).softmax(-1) for h in range(2) for i in rows_of]
        parts.append(torch.stack(paid).sum(0) / len(paid) if paid else torch.zeros(b - a))
    close(torch.cat(reading.seen.received, 1)[0], torch.cat(parts), 1e-6)


@dataclass(frozen=True)
class Short(IPCV):
    """Restores something else."""

    lose: ClassVar[list[int]] = []

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        whole = super().restore(tokens, parked, site)
        return whole[: len(whole) - sum(type(self).lose)]


def test_a_restore_that_loses_tokens_is_an_error_and_nothing_stays(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    stock = tiny.text_logits(model, batch)
    Short.lose.append(1)
    with foveate.compress(model, Short(min_tokens=0)) as handle:
        with pytest.raises(
            foveate.FoveateError, match=r"Short.restore at tower 1 .attend. returned float32 .*, expected"
        ):
            model(**batch)
        Short.lose.clear()  # nothing, from now on
        again = tiny.text_logits(model, batch)
        assert again.isfinite().all()
        handle.remove()
    assert torch.equal(tiny.text_logits(model, batch), stock)
    with foveate.compress(model, IPCV(min_tokens=0)):
        close(tiny.text_logits(model, batch), again, 0.0)


def test_gradient_checkpointing_is_refused_with_a_sentence(family: str) -> None:
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS[family])
    model.train().gradient_checkpointing_enable()
    with (
        foveate.compress(model, IPCV(min_tokens=0)),
        pytest.raises(foveate.FoveateError, match="gradient checkpointing"),
    ):
        model(**batch)
