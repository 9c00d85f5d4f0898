"""DyCoke: each generated token attends to the visual tokens that matter now (the decode stage only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.errors import ConfigError
from foveate.method import Host, Method, Paper, Site, Unit
from foveate.ops import select
from foveate.ops.segments import segment_ids
from foveate.pruners import from_the_start
from foveate.schedule import Schedule, check_ratio
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class DyCoke(Method):
    """While decoding, from layer ``layer`` on, attend only to the visual tokens that the current token looks at.

    This is section 3.3, the dynamic KV cache; the temporal merging of section 3.2 acts before the LLM and is not here yet.
    From the paper: attention of layer 3's predecessor, 30 % of the visual tokens kept, a new choice only when the
    attention has turned (cosine below 0.9). Hidden keys and values are not freed, so they can come back. The authors'
    code rounds the count down, and falls back to the whole cache when the attention has not turned; ours is the nearest count
    and, as in the paper, keeps the last choice. As in the code, all frames of a video share one budget and one ranking; ours:
    every image and video of a prompt has its own.

    Attributes:
        decode_ratio: share of the visual tokens of an image or video that a step sees from there on; by default 0.3.
        layer: first decoder layer that sees less; the attention of the one before it chooses. By default 3, or the last one.
        threshold: cosine between two steps' attention below which the choice is made anew.
    """

    decode_ratio: float | None = None
    layer: int | None = None
    threshold: float = 0.9

    unit: ClassVar[Unit] = "decode"
    how_much: ClassVar[tuple[str, ...]] = ("decode_ratio",)
    pooled: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models",
        "CVPR",
        2025,
        "2411.15024",
        "KD-TAO/DyCoke",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("threshold", self.threshold)

    def plan(self, host: Host) -> Schedule:
        """Return the share of the visual keys and values that a step reads from one layer on."""
        layer = min(3, host.layers - 1) if self.layer is None else from_the_start(self.layer, host)
        schedule = Schedule(((layer, 0.3 if self.decode_ratio is None else self.decode_ratio),))
        if self.keep is None:
            return schedule
        if self.layer is None:
            schedule = schedule.earlier(self.keep, host.depth, first=1)
        try:
            return schedule.at_mean(self.keep, host.depth)
        except ConfigError as error:
            raise ConfigError(f"{self.name()}: {error}") from None

    def sites(self, host: Host) -> Sequence[Site]:
        ((layer, ratio),) = self.plan(host).stages
        return [Site.decode(layer, ratio, signals=("last_row",))]

    def least(self, host: Host) -> float:
        return (1 if self.layer is None else from_the_start(self.layer, host)) / host.depth

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        attention, pools = tokens.last_row.float().mean(-1), tokens.pool_counts
        before, tokens.state["attention"] = tokens.state.get("attention"), attention
        turned = None
        if before is not None and before.shape == attention.shape:
            turned = _cosine(before, attention, pools) < self.threshold
            if turned.device.type == "cpu" and not bool(turned.any()):  # (another device would have to be waited for)
                return Reduction(tokens.state["keep"], tokens.state["counts"])
        kept = tokens.pool_budget(site)
        keep = select.top_k(attention, pools, kept)
        if turned is not None:
            keep = torch.where(turned[segment_ids(kept, keep.device)], keep, tokens.state["keep"])
        chosen = tokens.keep_pooled(keep, kept)
        tokens.state["keep"], tokens.state["counts"] = keep, chosen.counts
        return chosen


def _cosine(a: torch.Tensor, b: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Cosine of two packed ``(N,)`` vectors by segment: ``(S,)``."""
    if len(counts) == 1:
        return torch.cosine_similarity(a[None], b[None], eps=torch.finfo(a.dtype).tiny)
    segment, zeros = segment_ids(counts, a.device), a.new_zeros(len(counts))
    dot, aa, bb = (zeros.index_add(0, segment, x) for x in (a * b, a * a, b * b))
    return dot / (aa * bb).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
