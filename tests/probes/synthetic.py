"""Made-up methods which together use every kind of site, signal and answer: what holds for them holds for the vocabulary.

Each is as small as it can be and says in its first line what it is there for. `PROBES` has those that the contract is checked
with on every family; `EVERYTHING` removes nothing, anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from foveate import Host, Method, Reduction, Site, Tokens
from foveate.answers import Answer, Sight
from foveate.ops import merge, segments, select
from foveate.pruners import SingleRatio
from foveate.tokens import Parked
from foveate.units import Unit


@dataclass(frozen=True)
class Smaller(Method):
    """Images are resized before the tower, to half of their rows of tokens."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("pixels", keep=0.5)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        shapes = tuple(((height + 1) // 2, width) for height, width in tokens.spans.shape)
        widths = torch.tensor([width for _, width in tokens.spans.shape], device=tokens.index.device)
        kept = tokens.keep_mask((tokens.index // widths[tokens.segment]) % 2 == 0)
        return replace(kept, shape=shapes)


@dataclass(frozen=True)
class Ragged(Method):
    """The place of an image in the call says how many of its tokens survive: `kept` tells the test which."""

    block: int = 1
    mid: bool = False
    kept: ClassVar[list[list[int]]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", self.block, where="mid" if self.mid else "before")]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        stays = (tokens.index + tokens.segment) % (2 + tokens.segment % 3) == 0
        type(self).kept[:] = [tokens.index[stays & (tokens.segment == s)].tolist() for s in range(len(tokens.counts))]
        return tokens.keep_mask(stays)


@dataclass(frozen=True)
class Bright(Method):
    """What an image shows says how many of its tokens survive, before a vision block or in the middle of it: perhaps none."""

    mid: bool = False
    fixed_budget: ClassVar[bool] = False

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", 1, where="mid" if self.mid else "before")]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask(tokens.hidden.float().mean(-1) > 0)


@dataclass(frozen=True)
class DropBlocks(Method):
    """Scattered tokens survive before a vision block, as many as the budget says."""

    keep: float = 0.5
    block: int = 1

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", self.block, self.keep)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site.keep)
        # neither order nor size of spans matters
        ranked = tokens.keep_best(-((tokens.index * 7) % 5).float(), site.keep)
        assert ranked.counts == counts
        return ranked


@dataclass(frozen=True)
class ParkHalf(Method):
    """Every second patch skips the blocks between ``first`` and ``last``, then comes back."""

    first: int = 1
    last: int = 3
    mid: bool = False

    def sites(self, host: Host) -> Sequence[Site]:
        where: Literal["before", "mid"] = "mid" if self.mid else "before"
        return [
            Site("tower", self.first, 0.5, where=where, action="park", unit="patch"),
            Site("tower", self.last, action="restore"),
        ]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site.keep)
        return Reduction(select.stride(tokens.counts, counts), counts)


@dataclass(frozen=True)
class Lend(Method):
    """Units set aside lend their keys and values to one block, and come back changed."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [
            Site("tower", 1, 0.4, action="park"),
            Site("tower", 2, action="attend"),
            Site("tower", 3, action="restore"),
        ]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site.keep)
        return Reduction(select.stride(tokens.counts, counts), counts)

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        return super().restore(tokens, parked, site) * 0.9


@dataclass(frozen=True)
class Pairs(Method):
    """Neighbours of an image become one token between them, which weighs as much as both, inside vision blocks."""

    proportional_attention: ClassVar[bool] = True

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", block, 0.5, where="mid", signals=("keys",)) for block in (0, 2)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return pairs(tokens)


@dataclass(frozen=True)
class PairsOf(Method):
    """The same at any place, without a weight in attention."""

    at: str = "lm_entry"
    layer: int = 0

    def sites(self, host: Host) -> Sequence[Site]:
        at: Any = self.at
        return [Site(at, self.layer, 0.5)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return pairs(tokens)


def pairs(tokens: Tokens) -> Reduction:
    """The means of every two tokens of an image that follow each other; of an odd number one stays alone."""
    counts = tokens.budget(0.5)
    keep = select.stride(tokens.counts, counts, tokens.index.device, "first")
    n, group = len(keep), torch.searchsorted(keep, torch.arange(len(tokens)), right=True) - 1
    survives = torch.tensor(counts)[tokens.segment] > 0  # of a chunk of an image perhaps nothing does
    group = torch.where(survives, group, n)
    sizes = torch.zeros(n + 1).index_add(0, group, tokens.sizes)
    weight = (tokens.sizes / sizes[group])[:, None]
    hidden = torch.zeros(n + 1, tokens.hidden.shape[1], dtype=tokens.hidden.dtype)
    hidden = hidden.index_add(0, group, (tokens.hidden * weight).to(tokens.hidden.dtype))
    return Reduction(keep, counts, hidden[:n], sizes[:n], groups=lambda: group)


@dataclass(frozen=True)
class Looked(Method):
    """Signals of the tower rank what leaves it: attention received, that of the CLS token where there is one, keys, values."""

    def sites(self, host: Host) -> Sequence[Site]:
        signals: tuple[Any, ...] = ("received", "keys", "values", "residual", *(("cls_row",) if host.has_cls else ()))
        return [Site("tower", 2, 0.7, signals=signals), Site("tower_output", keep=0.5, signals=signals[:3])]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        score = tokens.received + 0.1 * (tokens.keys * tokens.values).flatten(1).mean(1)
        for name in set(site.signals) & {"cls_row", "residual"}:
            score = score + 0.1 * tokens.signals[name].float().mean(1)
        return score


@dataclass(frozen=True)
class Asked(Method):
    """What the text of a prompt is like ranks where the features meet it."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry", keep=0.6, signals=("text",))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        words = segments.segment_ids(tokens.text_counts)
        mean = segments.segment_mean(tokens.text.float(), words, len(tokens.text_counts))
        return (tokens.hidden.float() * mean[tokens.sample]).sum(-1)


@dataclass(frozen=True)
class Received(Method):
    """Every signal of the language model at once, at one layer."""

    keep: float = 0.5
    layer: int = 3

    def sites(self, host: Host) -> Sequence[Site]:
        signals = ("received", "text_rows", "last_row", "keys", "values", "residual", "text")
        return [Site("decoder", self.layer, self.keep, signals=signals)]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        flat = (tokens.keys * tokens.values).flatten(1).sum(1) + tokens.residual.norm(dim=-1)
        assert tokens.text.shape[0] == sum(tokens.text_counts)
        return tokens.received + tokens.text_rows.sum(1) + tokens.last_row.sum(1) + 0 * flat


@dataclass(frozen=True)
class Uneven(Method):
    """Some images lose all of their tokens in the language model, others a few."""

    fixed_budget: ClassVar[bool] = False

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", layer) for layer in (1, 3)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        high = tokens.hidden.float().mean(-1) > 0.02 * site.layer
        empty = torch.tensor([height * width % 3 == 0 for height, width in tokens.spans.shape])[tokens.segment]
        return tokens.keep_mask(high & ~(empty & (site.layer == 3)))


@dataclass(frozen=True)
class Cascade(Method):
    """A schedule takes tokens away before several layers."""

    def sites(self, host: Host) -> Sequence[Site]:
        return Site.cascade("decoder", [(0, 0.7), (2, 0.4), (4, 0.1)])

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return -((tokens.index * 5) % 7).float()


@dataclass(frozen=True)
class Nothing(Method):
    """Not one visual token is left, from the first layer or from a later one on."""

    layer: int = 0

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", self.layer, 0.0)]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.index.float()


@dataclass(frozen=True)
class Skips(SingleRatio):
    """Only the last ``ratio`` of each image's tokens go through a part of the decoder layers from ``first`` on."""

    first: int = 0
    part: Literal["ffn", "attention"] = "ffn"

    unit: ClassVar[Unit] = "compute"
    usual: ClassVar[float] = 0.25

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        return [Site.skip(i, self.part, ratio) for i in range(self.first, host.layers)]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.index.float()


@dataclass(frozen=True)
class Paths(Method):
    """Two groups of tokens do not see each other up to a layer, where one leaves; ``blind``: text does not see it either."""

    layer: int = 3
    blind: bool = False

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry", action="sight"), Site("decoder", self.layer)]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "reduce":
            return self.reduce(tokens, site)
        first, second, text = range(3)
        sees = torch.ones(3, 3, dtype=torch.bool)
        sees[first, second] = sees[second, first] = False
        sees[text, second] = not self.blind
        return Sight(tokens.index % 2, sees)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask(tokens.index % 2 == 0)


@dataclass(frozen=True)
class Alike(Method):
    """The most similar pairs of an image become one token each, at one place, and say which tokens they are made of."""

    share: float = 0.6
    at: Literal["tower_output", "lm_entry"] = "lm_entry"

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site(self.at, keep=self.share)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        merges = [n - max(kept, n - n // 2) for kept, n in zip(tokens.budget(site), tokens.counts)]
        return tokens.merge_pairs(*merge.bipartite_match(tokens.hidden, tokens.counts, merges), merges)

    def flops(self, tokens: Tokens, site: Site) -> int:
        merges = [min(n - kept, n // 2) for kept, n in zip(tokens.budget(site), tokens.counts)]
        return merge.bipartite_flops(tokens.counts, merges, tokens.hidden.shape[-1])


@dataclass(frozen=True)
class Recall(Method):
    """Every generated token sees other visual tokens; nothing leaves the cache."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decode", 2, 0.5, signals=("last_row",))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        tokens.state["steps"] = tokens.state.get("steps", 0) + 1
        return tokens.last_row.sum(1)


@dataclass(frozen=True)
class All(Method):
    """It acts wherever it can and removes nothing."""

    def sites(self, host: Host) -> Sequence[Site]:
        inside = [Site("tower", 1), Site("tower", 2, where="mid", signals=("keys",)), Site("tower_output")]
        return [*inside, Site("lm_entry", signals=("text",)), *(Site("decoder", i) for i in range(host.layers))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.index.float()


PROBES: dict[str, Method] = {
    "smaller": Smaller(),
    "smaller, native": Smaller(positions="native"),
    "bright": Bright(),
    "bright, mid": Bright(mid=True),
    "parked": ParkHalf(),
    "parked, mid": ParkHalf(mid=True),
    "lent": Lend(),
    "pairs": Pairs(),
    "pairs at entry": PairsOf(),
    "pairs in the decoder": PairsOf(at="decoder", layer=2),
    "looked": Looked(),
    "asked": Asked(),
    "received": Received(),
    "uneven": Uneven(),
    "cascade": Cascade(),
    "cascade, renumbered": Cascade(positions="renumber"),
    "nothing": Nothing(),
    "nothing, later": Nothing(layer=3),
    "recall": Recall(),
    "tower and decoder": DropBlocks(keep=0.8) + Cascade(),
    "sum": DropBlocks(keep=0.8) + Asked() + Received(),
}

EVERYTHING = All() + DropBlocks(keep=1.0) + Received(keep=1.0)
