"""VScan: the tower keeps what single windows and the whole image look at, and a middle layer what the question looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import merge, select
from foveate.ops.segments import offsets
from foveate.pruners import StagedPruner
from foveate.schedule import Schedule
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class VScan(StagedPruner):
    """Keep the tokens that a local and a global scan of the tower choose, merge the others into them, and prune in the decoder.

    From the paper and the authors' code: half of the survivors are the best of each window in a shallow block, the rest
    those of the whole image in the last one; each of the others is averaged into the kept token that is most like it;
    before layer 16 of 32 (14 of 28 in Qwen2.5-VL) stays a third of these, by the attention that the last token pays with
    that layer's norm and projections, and with RoPE in LLaVA alone. With a CLS token (LLaVA): its attention, mean over
    heads, in block 5, 6x6 windows that get equally many; without (Qwen2.5-VL): attention received, block 7, 4x4 windows
    (what is over at the edges belongs to the last one) of which each gives at most its part, rounded up, and the best half
    in all. 1/6 of the tokens after the tower, so 1/9 on average. Ours: tokens merge before the projector, where the code
    merges after it (so that merged ones need not be projected); the scan block at the same share of the depth; images
    smaller than a window are one; original positions (the code renumbers LLaVA's); nearest counts.

    Attributes:
        layers: where tokens leave: 0 is the tower's output, others are decoder layers; by default 0 and half of the depth.
        ratios: share of the tokens present that survives at each of them; by default 1/6 and 1/3.
        scan: how tokens are chosen, in the tower and in the decoder: as in ``llava`` or as in ``qwen``; by default as the tower
            has a CLS token or not.
        window: side of a window in tokens; by default 6 in ``llava``, 4 in ``qwen``.
        block: vision block of the local scan; by default at 7/32 of the depth.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    scan: Literal["llava", "qwen"] | None = None
    window: int | None = None
    block: int | None = None

    where: ClassVar[tuple[str, ...]] = ("layers", "block")
    signals: ClassVar[tuple[Signal | str, ...]] = ("next_row",)
    paper: ClassVar[Paper] = Paper(
        "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models",
        "TMLR",
        2026,
        "2505.22654",
        "Tencent/SelfEvolvingAgent",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.window < 1:
            raise ConfigError(f"vscan: window={self.window}: give the side of a window in tokens, at least 1")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((0, 16), (1 / 6, 1 / 3), 32, host.layers)

    def tower_signals(self, host: Host) -> tuple[Signal | str, ...]:
        kind = "cls_row" if host.has_cls else "received"
        block = min(round(host.blocks * 7 / 32), host.blocks - 1) if self.block is None else self.block
        return Signal(kind, block), Signal(kind, host.blocks - 1)

    def sites(self, host: Host) -> Sequence[Site]:
        row = "next_row" if self.scan_of(host) == "llava" else "unrotated_row"
        found = super().sites(host)
        return [replace(each, signals=(row,)) if each.at == "decoder" and each.signals else each for each in found]

    def scan_of(self, host: Host) -> str:
        """Tell as in which model tokens are chosen in one like ``host``."""
        return self.scan or ("llava" if host.has_cls else "qwen")

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.signal(site.asked[0]).mean(-1)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at == "decoder":
            return super().reduce(tokens, site)
        kept = tokens.budget(site)
        shallow, deep = (tokens.signal(each) for each in site.asked)
        scan = self.scan or ("llava" if shallow.dim() == 2 else "qwen")
        shallow, deep = (each.mean(-1) if each.dim() == 2 else each for each in (shallow, deep))
        local = self._local(shallow, tokens, kept, scan)
        best_first = len(tokens) * local.long() - select.rank_within(deep, tokens.counts)
        keep = select.top_k(best_first, tokens.counts, kept)
        group = merge.nearest_target(tokens.hidden, tokens.counts, keep, kept)
        return tokens.merge_into(keep, kept, group, "mean")

    def _local(self, score: Tensor, tokens: Tokens, kept: tuple[int, ...], scan: str) -> Tensor:
        """Which tokens ``(N,)`` the local scan chooses, up to half of the survivors of each image."""
        side = self.window or (6 if scan == "llava" else 4)
        down = [max(height // side, 1) for height, _ in tokens.spans.shape]
        across = [max(width // side, 1) for _, width in tokens.spans.shape]
        windows = [a * b for a, b in zip(down, across)]
        part = [k // 2 // n if scan == "llava" else -(-(k // 2) // n) for k, n in zip(kept, windows)]
        most = [each * n if scan == "llava" else k // 2 for each, n, k in zip(part, windows, kept)]
        width = [width for _, width in tokens.spans.shape]
        facts = torch.tensor([width, down, across, offsets(windows)[:-1], part], dtype=torch.long)
        wide, rows, columns, first, quota = facts.to(score.device, non_blocking=True)[:, tokens.segment]
        y, x = (tokens.index // wide // side).minimum(rows - 1), (tokens.index % wide // side).minimum(columns - 1)
        allowed = select.rank_in_groups(score, first + y * columns + x, sum(windows)) < quota
        best_first = len(tokens) * allowed.long() - select.rank_within(score, tokens.counts)
        chosen = select.top_k(best_first, tokens.counts, most)
        return torch.zeros_like(allowed).index_fill(0, chosen, True)

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.at == "decoder":
            return 0
        return merge.products(tokens.counts, tokens.budget(site), tokens.hidden.shape[-1])
