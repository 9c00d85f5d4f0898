"""DyCoke: each generated token attends to the visual tokens that matter now (the decode stage only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.method import Host, Method, Paper, Site
from foveate.ops import select
from foveate.ops.segments import segment_ids
from foveate.schedule import check_ratio
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
        keep: share of the visual tokens of an image or video that a step sees.
        layer: first decoder layer that sees less; the attention of the one before it chooses.
        threshold: cosine between two steps' attention below which the choice is made anew.
    """

    keep: float = 0.3
    layer: int = 3
    threshold: float = 0.9

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

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decode", self.layer, self.keep, signals=("last_row",))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        spans, counts = tokens.budget(site), tokens.clip_counts
        kept = [sum(spans[span] for span in clip) for clip in tokens.spans.clips]  # an image, or a whole video
        attention = tokens.last_row.float().mean(-1)
        keep = select.top_k(attention, counts, kept)
        before = tokens.state.get("attention")
        if before is not None and before.shape == attention.shape:
            turned = _cosine(before, attention, counts) < self.threshold
            keep = torch.where(turned[segment_ids(kept, keep.device)], keep, tokens.state["keep"])
        tokens.state["attention"], tokens.state["keep"] = attention, keep
        return Reduction(keep, spans) if len(counts) == len(spans) else tokens.keep_indices(keep)


def _cosine(a: torch.Tensor, b: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Cosine of two packed ``(N,)`` vectors by segment: ``(S,)``."""
    segment, zeros = segment_ids(counts, a.device), a.new_zeros(len(counts))
    dot, aa, bb = (zeros.index_add(0, segment, x) for x in (a * b, a * a, b * b))
    return dot / (aa * bb).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
