"""Merged tokens that stand for their members, together with every other answer: against a loop over the full sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
import torch
from calls import LOGITS, close, generate
from contract import CORE, PROPERTIES, Property
from probes.layer_skip import LayerSkip
from probes.synthetic import Alike, Skips
from probes.voco import VoCo
from torch import Tensor

import foveate
from foveate import AIR, Host, Method, Reduction, RedundancyLens, Signal, Site, Tokens

ROWS: list[list[tiny.Item]] = [[2, "image", 4, "image", 7]]
ENTRY = Site("lm_entry")
V: Any = dict(positions="virtual")
whole = pytest.mark.parametrize("family", tiny.WHOLE)


@dataclass(frozen=True)
class Merge(Method):
    """Each token whose index is a multiple of ``n`` takes in those up to the next one; later ones are dropped, if asked."""

    n: int = 3
    layer: int | None = None
    drops: bool = False
    positions: Any = field(default="virtual", kw_only=True)

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry") if self.layer is None else Site("decoder", self.layer)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        keep = (tokens.index % self.n == 0) | tokens.appended
        if self.drops:
            return tokens.keep_mask(keep)
        counts = tuple(int(part.sum()) for part in keep.split(tokens.counts))
        return tokens.merge_into(keep.nonzero().flatten(), counts, keep.cumsum(0) - 1)


@dataclass(frozen=True)
class Look(Method):
    """Notes what it is shown before a layer, or in the cache, and what it keeps there."""

    site: Site = ENTRY
    positions: Any = field(default="virtual", kw_only=True)
    seen: list[Tokens] = field(default_factory=list, compare=False)

    def sites(self, host: Host) -> Sequence[Site]:
        return [self.site]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        self.seen.append(tokens)
        return tokens.keep_mask(torch.ones_like(tokens.index, dtype=torch.bool))


@dataclass(frozen=True)
class Odd(Method):
    """Frees each member with an even index from a cache, or hides it at every step."""

    site: Site = ENTRY
    positions: Any = field(default="virtual", kw_only=True)

    def sites(self, host: Host) -> Sequence[Site]:
        return [self.site]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask(tokens.index % 2 == 1)


Mask = Callable[[int], Tensor | None]  # of a layer


class Full:
    """The stock language model on the full sequence of one prompt, in loops over layers.

    Attributes:
        x: ``(L, C)`` what enters it.
        rank: ``(L,)`` the index of a visual token in its image; -1: text.
        ids: position ids.
    """

    def __init__(self, family: str, model: Any, batch: dict[str, Tensor], new: Tensor | None = None) -> None:
        given: dict[str, Any] = {}
        hook = tiny.lm(model).register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)
        with torch.no_grad():
            model(**batch)
        hook.remove()
        self.model, self.x, rank = model, given["inputs_embeds"][0], []
        packed = family in tiny.PACKED
        self.ids = tiny.positions(model, batch)[:, 0] if packed else torch.arange(len(self.x))[None]
        for seen in tiny.visual_mask(family, batch)[0].tolist():
            rank.append((rank[-1] + 1 if rank else 0) if seen else -1)
        self.rank, self.text = torch.tensor(rank), torch.tensor(rank) < 0
        if new is not None:  # behind every image, at the place of its last token; their ranks are negative, and no text
            at = [i for i, r in enumerate(rank) for _ in range(1 + len(new) * (r >= 0 and rank[i + 1] < 0))]
            self.ids, self.text, self.rank = self.ids[:, at], self.text[at], self.rank[at]
            self.x, first = self.x[at], [i for i in range(1, len(at)) if at[i] == at[i - 1]]
            self.x[first] = new.repeat(2, 1)
            self.rank[first] = -2 - torch.arange(len(first))

    def groups(self, n: int) -> Tensor:
        """``(L,)`` the first place of the token that each is part of, where `Merge` has had its way."""
        first = torch.arange(len(self.x))
        for i in range(1, len(first)):
            if self.rank[i] >= 0 and self.rank[i] % n:
                first[i] = first[i - 1]
        return first

    def run(
        self,
        of: Callable[[int], Tensor],
        hides: Mask = lambda i: None,
        idle: Mask = lambda i: None,
        silent: Mask = lambda i: None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits ``(L, V)`` and the attention of every layer ``(H, L, L)``.

        Args:
            of: of a layer, ``(L,)`` the place whose token each is part of.
            hides: ``(L, L)`` what each place does not see.
            idle: ``(L,)`` places that a layer leaves alone, and does not see.
            silent: ``(L,)`` places that get nothing from its FFN.
        """
        n, hooks, seen = len(self.x), [], []

        def mean(i: int, x: Tensor) -> Tensor:
            group = of(i)
            sums = torch.zeros_like(x[0]).index_add(0, group, x[0])
            return (sums / torch.bincount(group, minlength=n).clamp(min=1)[:, None])[group][None]

        def before(i: int) -> Any:
            def hook(module: Any, args: Any, kwargs: Any) -> Any:
                gone = torch.ones(n, n, dtype=torch.bool).triu(1)
                for mask in (hides(i), idle(i)):
                    gone = gone if mask is None else gone | mask
                gone = gone & ~torch.eye(n, dtype=torch.bool)
                lowest = torch.finfo(torch.float32).min
                mask = torch.zeros(n, n).masked_fill(gone, lowest)[None, None]
                return (mean(i, args[0]), *args[1:]), {**kwargs, "attention_mask": mask}

            return hook

        def attended(i: int) -> Any:
            def hook(module: Any, args: Any, out: Any) -> Any:
                seen.append(out[1][0])
                return mean(i, out[0]), *out[1:]

            return hook

        for i, layer in enumerate(tiny.lm(self.model).layers):
            hooks.append(layer.register_forward_pre_hook(before(i), with_kwargs=True))
            hooks.append(layer.self_attn.register_forward_hook(attended(i)))
            for module, rows in ((layer, idle(i)), (layer.mlp, silent(i))):
                if rows is not None:
                    same = module is layer
                    hooks.append(
                        module.register_forward_hook(
                            lambda m, a, out, rows=rows, same=same: torch.where(
                                rows[:, None], a[0] if same else torch.zeros_like(out), out
                            )
                        )
                    )
        with torch.no_grad():
            states = tiny.lm(self.model)(
                inputs_embeds=self.x[None],
                position_ids=self.ids[:, None] if len(self.ids) > 1 else self.ids,
                attention_mask=torch.ones(1, n, dtype=torch.long),
            ).last_hidden_state[0]
        for hook in hooks:
            hook.remove()
        return self.model.get_output_embeddings()(states), seen


def full(family: str, new: Tensor | None = None) -> tuple[dict[str, Tensor], Full]:
    batch = tiny.inputs(family, ROWS)
    return batch, Full(family, tiny.model(family, "eager"), batch, new)


def text_logits(family: str, batch: dict[str, Tensor], method: Method) -> Tensor:
    """Logits of the text, under a method."""
    model = tiny.model(family)
    with torch.no_grad(), foveate.compress(model, method):
        logits: Tensor = model(**batch).logits[0][~tiny.visual_mask(family, batch)[0]]
    return logits


# -- signals ------------------------------------------------------------------------------------------------------------


@whole
def test_attention_is_paid_to_all_members(family: str) -> None:
    """What a token is paid is the sum over its members; keys are their mean."""
    signals = ("last_row", "received", "text_rows", "values", "next_row", Signal("received", rows="text"))
    batch, stock = full(family)
    look = Look(Site("decoder", 2, signals=signals))
    text_logits(family, batch, Merge() + look)
    (tokens,), of = look.seen, stock.groups(3)
    _, seen = stock.run(lambda i: of)
    places = (stock.rank >= 0).nonzero().flatten()
    owner = torch.unique(of[places], return_inverse=True)[1]

    def summed(paid: Tensor) -> Tensor:
        return torch.zeros(len(tokens), *paid.shape[1:]).index_add(0, owner, paid[places])

    layer, question = seen[1], slice(int(places[-1]) + 1, None)
    close(tokens.last_row, summed(layer[:, -1].T))
    close(tokens.received, summed(layer.mean((0, 1))))
    close(tokens.text_rows, summed(layer[:, question].mean(0).T))
    close(tokens.signal("next_row"), summed(seen[2][:, -1].T))
    close(tokens.signal(signals[-1]), summed(layer[:, stock.text].mean((0, 1))))
    assert len(tokens.values) == len(tokens) < len(places)


@whole
def test_attention_that_was_paid_before_tokens_merged_further(family: str) -> None:
    early = Signal("last_row", layer=0)
    batch, stock = full(family)
    look = Look(Site("decoder", 3, signals=(early,)))
    logits = text_logits(family, batch, Merge() + Merge(6, 2) + look)
    (tokens,), of = look.seen, stock.groups(6)
    expected, seen = stock.run(lambda i: of if i >= 2 else stock.groups(3))
    places = (stock.rank >= 0).nonzero().flatten()
    owner = torch.unique(of[places], return_inverse=True)[1]
    close(tokens.signal(early), torch.zeros(len(tokens), 4).index_add(0, owner, seen[0][:, -1].T[places]))
    close(logits, expected[stock.text])


# -- other answers ------------------------------------------------------------------------------------------------------


@whole
@pytest.mark.parametrize("order", [1, -1], ids=["after", "before"])
def test_a_sight_is_that_of_members(family: str, order: int) -> None:
    """Whether tokens have merged before or after somebody said who sees whom."""
    batch, stock = full(family)
    parts = [Merge(layer=2 if order < 0 else None), RedundancyLens(layers=(), hollow_layers=(1, 2, 3), window=4, **V)][
        ::order
    ]
    of, visual, places = stock.groups(3), stock.rank >= 0, torch.arange(len(stock.rank))
    far = ((places[:, None] - places).abs() > 4) & visual[:, None] & visual
    alone = torch.arange(len(of))
    expected, _ = stock.run(lambda i: of if order > 0 or i >= 2 else alone, lambda i: far if 1 <= i < 4 else None)
    close(text_logits(family, batch, parts[0] + parts[1]), expected[stock.text])


@whole
@pytest.mark.parametrize("order", [1, -1], ids=["after", "before"])
@pytest.mark.parametrize("hides", [False, True], ids=["seen", "hidden"])
def test_appended_tokens_stand_for_themselves(family: str, order: int, hides: bool) -> None:
    summary = VoCo(2, 99, hides, positions="virtual")
    batch, stock = full(family)
    tokens = Tokens(*[None] * 5, hidden=stock.x)  # type: ignore[arg-type,misc]
    stock = Full(family, stock.model, batch, summary.drawn(tokens))
    of, image = stock.groups(3), stock.rank >= 0
    hidden = stock.text[:, None] & image
    expected, _ = stock.run(lambda i: of, lambda i: hidden if hides else None)
    parts = [Merge(), summary][::order]
    close(text_logits(family, batch, parts[0] + parts[1]), expected[stock.text])


@whole
def test_parked_tokens_take_their_members_with_them(family: str) -> None:
    batch, stock = full(family)
    of, away = stock.groups(3), stock.rank >= 0
    expected, _ = stock.run(lambda i: of, idle=lambda i: away if i in (2, 3) else None)
    close(text_logits(family, batch, Merge() + LayerSkip(ratio=0.0, positions="virtual")), expected[stock.text])


@whole
def test_merged_tokens_skip_an_ffn(family: str) -> None:
    batch, stock = full(family)
    of = stock.groups(3)
    expected, _ = stock.run(lambda i: of, silent=lambda i: stock.rank >= 0 if i >= 1 else None)
    close(text_logits(family, batch, Merge() + Skips(ratio=0.0, first=1, positions="virtual")), expected[stock.text])


@whole
@pytest.mark.parametrize("at", ["cache", "decode"])
def test_the_cache_holds_members_one_by_one(family: str, at: Any) -> None:
    """Members with an even index are gone for generated words: from one layer's cache, or from all after it."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    n = batch["input_ids"].shape[1]
    with torch.no_grad(), foveate.compress(model, Merge() + Odd(Site(at, 2))) as handle:
        out = generate(model, batch, **LOGITS)
        report = handle.report()
    longer = tiny.longer(family, batch, out.sequences)
    stock = Full(family, tiny.model(family, "eager"), longer)
    of, even = stock.groups(3), (stock.rank >= 0) & (stock.rank % 2 == 0)
    later = torch.arange(len(of))[:, None] >= n
    expected, _ = stock.run(lambda i: of, lambda i: later & even if i == 2 or (at == "decode" and i > 2) else None)
    close(torch.cat(out.logits), expected[n - 1 : -1])
    assert report.kv_lengths[2] == n + 3 - (int(even.sum()) if at == "cache" else 0)


# -- all at once --------------------------------------------------------------------------------------------------------

METHODS = {
    "all": Alike(**V)
    + RedundancyLens(layers=(), hollow_layers=(1,), window=4, **V)
    + LayerSkip(ratio=0.4, first=2, last=4, **V)
    + Skips(ratio=0.4, first=4, **V)
    + foveate.FastV(layer=5, **V)
    + Odd(Site("cache", 2)),
    "appended": Alike(**V) + VoCo(2, 3, **V),
    "injected": Alike(**V) + AIR(layers=(3, 4, 5), outliers=4, window=2, into="text", **V),
    "in the tower": foveate.IPCV(min_tokens=0, **V) + Alike(**V),
    "decode": Alike(**V) + foveate.DyCoke(ratio=1.0, **V),
}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@whole
def test_properties_of_all(family: str, check: Property) -> None:
    check(family, METHODS["all"])


@pytest.mark.parametrize("name", [name for name in METHODS if name != "all"])
@pytest.mark.parametrize("check", CORE, ids=lambda check: check.__name__)
@whole
def test_what_is_at_the_core_of_two(family: str, name: str, check: Property) -> None:
    check(family, METHODS[name])
