"""VLM-Pruner: from a few pivots outward, tokens are chosen that differ from those chosen, and take in what leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import bases, merge, outward
from foveate.ops.segments import segment_ids, segment_mean, segment_sum
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, check_within
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

CHANNELS = 256  # those with the largest variance over the image, which are compared


@dataclass(frozen=True)
class VLMPruner(DecoderPruner):
    """Choose tokens that differ, near ones before far ones, from a few pivots outward, and merge the others into them.

    From the paper: pruning for diversity alone scatters what stays over the image, so distance counts against a token until
    what is near has been chosen. From the authors' code: before layer 2, by keys of the layer before: the first pivot has the
    largest, the others, up to ``pivots``, are the farthest from those chosen; then, 16 tokens at a time, those are chosen whose
    largest cosine with what is chosen, in the 256 channels with the largest variance, times ``1 + far * distance``, is below
    0.8, in the next round 0.9, and so on; ``distance`` is to the nearest chosen one, in diagonals of the image; a token that
    leaves joins the one that is most like it, which becomes 0.3 of itself and 0.7 of the mean of these by cosine; 1/9 stays.
    Ours: the largest by L2 norm (the code: L1, of keys that rotary embeddings have turned, so it depends on padding); where a
    round chooses none the next one begins (the code ends, with fewer tokens than were asked for); a token that is like none
    counts for nothing in means; counts are the nearest.

    Attributes:
        layer: by default 2.
        ratio: share of an image's tokens that survives; by default 1/9.
        pivots: tokens to begin with.
        far: how much distance counts against a token.
        blend: share of itself in a survivor that others join.
    """

    layer: int | None = None
    ratio: float | None = None
    pivots: int = 4
    far: float = 0.5
    blend: float = 0.3

    signals: ClassVar[tuple[Signal | str, ...]] = ("keys",)
    paper: ClassVar[Paper] = Paper(
        "VLM-Pruner: Buffering for Spatial Sparsity in an Efficient VLM Centrifugal Token Pruning Paradigm",
        "CVPR",
        2026,
        "2512.02700",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share", blend=self.blend)
        check_within("a weight of the distance", far=self.far)
        if self.pivots < 1:
            raise ConfigError(f"vlmpruner: pivots={self.pivots}: give at least 1")

    def usual(self, host: Host) -> Schedule:
        return Schedule(((2, 1 / 9),))

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept, counts = tokens.budget(site), tokens.counts
        if kept == counts:
            return Reduction(torch.arange(len(tokens), device=tokens.index.device), kept)
        keys, x = tokens.keys.float().flatten(1), self._compared(tokens)
        n_pivots = [min(self.pivots, k) for k in kept]
        pivots = bases.farthest(keys, counts, n_pivots, torch.linalg.vector_norm(keys, dim=-1))
        width, diagonal = torch.tensor([(w, (h * h + w * w) ** 0.5) for h, w in tokens.spans.shape]).unbind(1)
        width, diagonal = (each.to(x.device, non_blocking=True)[tokens.segment] for each in (width.long(), diagonal))
        place = torch.stack([tokens.index // width, tokens.index % width], 1) / diagonal[:, None]
        keep = outward.outward(x, place, counts, kept, pivots, 0.8, 16, self.far)
        group = merge.nearest_target(x, counts, keep, kept)
        return replace(tokens.merge_into(keep, kept, group), hidden=self._merged(tokens.hidden, x, keep, group))

    def _compared(self, tokens: Tokens) -> Tensor:
        """The channels of each image that vary most, ``(N, c)``."""
        x, n = tokens.hidden.float(), len(tokens.counts)
        segment = segment_ids(tokens.counts, x.device)
        spread = segment_mean((x - segment_mean(x, segment, n)[segment]).square(), segment, n)
        most = spread.argsort(dim=1, descending=True, stable=True)[
            :, :CHANNELS
        ]  # of equal ones the first, on any device
        return x.gather(1, most[segment])

    def _merged(self, hidden: Tensor, x: Tensor, keep: Tensor, group: Tensor) -> Tensor:
        k = len(keep)
        target = torch.nn.functional.pad(keep, (0, 1), value=0)[group]
        weight = torch.cosine_similarity(x, x[target], dim=-1).clamp(min=0)
        weight = weight.masked_fill(group == k, 0.0).index_fill(0, keep, 0.0)
        total = segment_sum(weight, group, k + 1)[:-1, None]
        mean = segment_sum(hidden.float() * weight[:, None], group, k + 1)[:-1] / total.clamp(min=1e-8)
        own = hidden[keep].float()
        return torch.where(total > 0, self.blend * own + (1 - self.blend) * mean, own).to(hidden.dtype)

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept, counts, width = tokens.budget(site), tokens.counts, min(CHANNELS, tokens.hidden.shape[-1])
        if kept == counts:
            return 0
        pivots = bases.farthest_flops(counts, [min(self.pivots, k) for k in kept], tokens.keys[0].numel())
        return pivots + merge.products(counts, kept, width) + outward.outward_flops(counts, kept, width)
