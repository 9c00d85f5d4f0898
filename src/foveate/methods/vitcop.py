"""ViTCoP: the tower filters tokens, then the language model merges clusters of them and drops those with large keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import clusters, select
from foveate.pruners import StagedPruner
from foveate.schedule import Schedule, check_within, survivors
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

ENTERED = Signal("hidden", layer=0)


@dataclass(frozen=True)
class ViTCoP(StagedPruner):
    """Keep what the CLS token attends to, then in the decoder one token of each cluster and those with the smallest keys.

    From the paper and the authors' code: attention of the tower's last used block, summed over heads; density peaks (the next
    denser token is far, or more than 0.6 of the image away) are centres, and tokens belong where their chain of denser
    neighbours ends; before layer 2 of 32, the smaller a token's key in the layer before (norm of its mean over heads), the
    more it matters: of each cluster the best stay, as its size says, and the others merge into the middle one of them; of more
    clusters than places the last become one; before layer 22 stays a fifth, by the same norm. For a mean of 1/3, half leaves
    the tower and 18 % of it are centres; of 2/9, 40 and 15 %; of 1/9, 30 and 12 %; and in proportion. Ours: a merged token is
    the mean of its members (see ``add``); clusters are of features as they enter the language model, distances in units of the
    image's own (the code: keys of the tower, 8); without a CLS token, attention received.

    Attributes:
        layers: where tokens leave: 0 is the tower's output, the next one merges clusters; by default 0, 2 and 22 of 32, scaled.
        ratios: share of the tokens present that survives at each of them; by default see above.
        clusters: share of the tokens that are centres where clusters merge; by default see above.
        cutoff: distance at which a neighbour weighs 1/e, in root mean squared distances of the image.
        reach: how far away a token's denser neighbour may be, as a share of the image's sides.
        add: as the code does, add the mean to the token in the middle in place of replacing it.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    clusters: float | None = None
    cutoff: float = 1.0
    reach: float = 0.6
    add: bool = False

    signals: ClassVar[tuple[Signal | str, ...]] = ("keys",)
    paper: ClassVar[Paper] = Paper(
        "ViTCoP: Accelerating Large Vision-Language Models via Visual and Textual Semantic Collaborative Pruning",
        "AAAI",
        2026,
        "2601.17818",
        "chaser682/ViTCoP",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the tokens", clusters=self.clusters)
        check_within("a distance", math.inf, cutoff=self.cutoff, reach=self.reach)
        for name in ("clusters", "cutoff", "reach"):
            if getattr(self, name) == 0:
                raise ConfigError(f"vitcop: {name}=0 leaves no cluster: give more than 0")

    def usual(self, host: Host) -> Schedule:
        mean = 1 / 3 if self.keep is None else self.keep
        merges, drops = (max(i, round(host.layers * at / 32)) for i, at in ((1, 2), (2, 22)))
        tower, layers = min(1.0, 0.2 + 0.9 * mean), max(host.depth, drops + 1)
        places = (layers * mean / tower - merges) / (drops - merges + (layers - drops) / 5)
        return Schedule.cuts((0, merges, drops), (tower, min(max(places, 0.01), 1.0), 0.2))

    def tower_signals(self, host: Host) -> tuple[Signal | str, ...]:
        return ("cls_row" if host.has_cls else "received",)

    def sites(self, host: Host) -> Sequence[Site]:
        found = super().sites(host)
        return [replace(s, signals=(*s.signals, ENTERED)) if s.keep and len(s.shares) == 1 else s for s in found]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        if site.at == "tower_output":
            return tokens.cls_row.sum(-1) if "cls_row" in tokens.signals else tokens.received
        return tokens.keys.float().mean(1).square().sum(-1).sqrt().neg()

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.budget(site)
        if len(site.shares) != 1 or kept == tokens.counts:
            return super().reduce(tokens, site)
        n_clusters = self._n_clusters(tokens)
        number = self._clusters(tokens, n_clusters)
        keep, group, alone = clusters.thin(number, self.score(tokens, site), tokens.counts, n_clusters, kept)
        reduction = tokens.merge_into(keep, kept, group, "mean")
        if not self.add or reduction.hidden is None:
            return reduction
        return replace(reduction, hidden=reduction.hidden + tokens.hidden[keep] * ~alone[keep, None])

    def _n_clusters(self, tokens: Tokens) -> tuple[int, ...]:
        share = 0.09 + 0.27 * (1 / 3 if self.keep is None else self.keep) if self.clusters is None else self.clusters
        return tuple(survivors(n, share) for n in tokens.counts)

    def _clusters(self, tokens: Tokens, n_clusters: tuple[int, ...]) -> Tensor:
        """Number the cluster of each token ``(N,)``, counted over all images."""
        features, counts = tokens.signal(ENTERED), tokens.counts
        sides = torch.tensor(tokens.spans.shape, dtype=torch.float32).view(-1, 2).to(features.device, non_blocking=True)
        apart = clusters.distances(features, counts)
        density = clusters.density_within(apart, features, counts, self.cutoff)
        away, link = clusters.to_denser(apart, density, tokens.coords[:, 1:] / sides[tokens.segment], self.reach)
        centres = clusters.peaks(away, density, counts, n_clusters)
        rank = select.rank(centres, len(tokens))
        number = rank[clusters.followed(link, centres)]  # of an end that is no centre, the nearest one
        return torch.where(number < len(centres), number, rank[clusters.nearest_centre(apart, centres)])

    def flops(self, tokens: Tokens, site: Site) -> int:
        merges = len(site.shares) == 1 and tokens.budget(site) != tokens.counts
        return clusters.products(tokens.counts, tokens.hidden.shape[-1]) if merges else 0
