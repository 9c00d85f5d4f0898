"""IPCV: most patches skip most of the vision tower, and come back before the merger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import neighbours, select
from foveate.pruners import TowerParker
from foveate.schedule import survivors
from foveate.signal import Signal
from foveate.tokens import Parked, Reduction, Tokens


@dataclass(frozen=True)
class IPCV(TowerParker):
    """Only the patches that an early vision block changed most run through the others; all are back at the tower's end.

    From the paper: the score, the L2 norm of what block ``block - 1`` added; Neighbour-Guided Reconstruction (a parked patch is
    its frozen state plus the mean change of its nearest kept ones); Attention Stabilisation (for some blocks the kept attend
    to all, parked ones reconstructed); all are restored before the merger. From the authors' code: the 10 nearest where they
    were parked, in fp32, equal weights; single patches; original rotary rows; block 3 and 7 stabilised blocks (Qwen2-VL), 7 and
    3 (InternVL); a call shares budget and neighbours (Qwen2-VL: ``budget``), or neighbours (InternVL: ``neighbours``). Ours: in
    shallower towers (than 27 blocks, with CLS 24) these in proportion; by default an image or video has its own budget, a span
    its neighbours; one patch of it at least; nearest count (the code rounds down); in stabilised blocks queries of kept patches
    only, with the same result; CLS goes on and is nobody's neighbour (in the code it may be).

    Attributes:
        ratio: share of the patches that go on through the tower; by default 0.35.
        block: vision block before which the others are parked (the paper's l_p), at least 1; None: see above.
        stabilise: blocks from there on in which the kept attend to all (the paper's AS); None: see above.
        neighbours: kept patches whose mean change a parked one takes over (the paper's k).
        min_tokens: spans of fewer patches stay whole (of 28 or less, the defaults keep fewer than ``neighbours``).
        changed: which go on: those that the score's block changed ``most`` (the paper), or ``least`` (docs/methods/ipcv.md).
        across: what is shared by all images of a call: ``nothing``, ``neighbours``, or the ``budget``, too.
    """

    neighbours: int = 10
    min_tokens: int = 29
    changed: Literal["most", "least"] = "most"
    across: Literal["nothing", "neighbours", "budget"] = "nothing"

    usual: ClassVar[float] = 0.35
    signals: ClassVar[tuple[Signal | str, ...]] = ("residual",)
    paper: ClassVar[Paper] = Paper(
        "IPCV: Information-Preserving Compression for MLLM Visual Encoders", "arXiv", 2025, "2512.18747", "Perkzi/IPCV"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"block": 1, "stabilise": 0, "neighbours": 1, "min_tokens": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ConfigError(f"IPCV: {name}={value} is too small: give at least {smallest}")

    @property
    def across_images(self) -> bool:
        return self.across != "nothing"

    def default_depths(self, host: Host) -> tuple[int, int]:
        shallowest, early, late = (24, 7, 3) if host.has_cls else (27, 3, 7)
        share = min(1.0, host.blocks / shallowest)
        return max(1, int(share * early + 0.5)), max(1, int(share * late + 0.5))

    def _budget(self, tokens: Tokens, ratio: float) -> tuple[int, ...]:
        """Count the patches that are kept of each span, or of all together (``across="budget"``)."""
        pools, kept, least = tokens.counts, tokens.budget(ratio), 1
        if self.across == "budget":
            pools, kept, least = (len(tokens),), (survivors(len(tokens), ratio),), sum(map(bool, tokens.counts))
        return tuple(n if n < self.min_tokens else max(k, min(least, n)) for n, k in zip(pools, kept))

    def _pools(self, all_of: Tokens, kept: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Count the patches that are parked and kept in each pool of neighbours."""
        if self.across == "nothing":
            return [n - k for n, k in zip(all_of.counts, kept)], list(kept)
        return [len(all_of) - sum(kept)], [sum(kept)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        score = torch.linalg.vector_norm(tokens.residual.float(), dim=-1) * (1 if self.changed == "most" else -1)
        kept = self._budget(tokens, site.keep)
        if self.across != "budget":
            return Reduction(select.top_k(score, tokens.counts, kept), kept)
        first = select.top_k(score, tokens.counts, [min(1, n) for n in tokens.counts])  # each span's best is safe
        return tokens.keep_indices(select.top_k(score.index_fill(0, first, torch.inf), (len(tokens),), kept))

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        before, state = parked.tokens.hidden, parked.state
        if not state:
            is_kept = torch.zeros(len(before), dtype=torch.uint8, device=before.device).index_fill(0, parked.keep, 1)
            rest = state["rest"] = torch.argsort(is_kept, stable=True)[: len(before) - len(parked.keep)]
            away, kept = self._pools(parked.tokens, tokens.counts)
            state["index"] = neighbours.nearest(before[rest], away, before[parked.keep], kept, self.neighbours)
            state["bags"] = neighbours.bags(away, kept, self.neighbours)
        change = (tokens.hidden - before[parked.keep]).float()
        moved = before[state["rest"]] + neighbours.bag_means(change, state["index"], state["bags"])
        out = torch.empty_like(before).index_copy_(0, parked.keep, tokens.hidden.to(before.dtype))
        return out.index_copy_(0, state["rest"], moved.to(before.dtype))

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.action != "park":  # which looks for neighbours, once
            return 0
        away, kept = self._pools(tokens, self._budget(tokens, site.keep))
        return neighbours.products(away, kept, tokens.hidden.shape[-1]) if sum(away) else 0
