"""IPCV: most patches skip most of the vision tower, and come back before the merger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Method, Site
from foveate.ops import neighbours, select
from foveate.schedule import survivors
from foveate.tokens import Parked, Reduction, Tokens


@dataclass(frozen=True)
class IPCV(Method):
    """Only the patches that an early vision block changed most run through the others; all are back at the tower's end.

    "IPCV: Information-Preserving Compression for MLLM Visual Encoders" (arXiv 2512.18747).
    From the paper: patches are ranked by the L2 norm of what block ``block - 1`` added to them; Neighbour-Guided
    Reconstruction (a parked patch is its frozen state plus the mean change of its nearest kept ones); Attention Stabilisation
    (in the first blocks after that the kept patches attend to all, parked ones reconstructed); all patches are restored
    before the merger. From the authors' code: neighbours are the 10 nearest where the patches were parked, in fp32, with
    equal weights; single patches, not 2x2 units; kept patches keep their rotary rows. Its numbers, block 3 and 7 stabilised
    blocks (Qwen2-VL), 7 and 3 (InternVL), up to the smallest depths it has them for, 27 and 24; ours, in proportion in
    shallower towers, without and with CLS. Ours: budget and neighbours per span, at least one patch of each (``global``, as
    in the code, lets the images of a call share both; one patch of each stays there, too); rounding to the nearest count;
    the stabilised attention makes queries and outputs of kept patches only, with the same result; a CLS token always goes
    on and is nobody's neighbour; short spans are left whole.

    Attributes:
        keep: share of the patches that go on through the tower.
        block: vision block before which the others are parked (the paper's l_p), at least 1; None: see above.
        stabilise: blocks from there on in which the kept attend to all (the paper's AS); None: see above.
        neighbours: kept patches whose mean change a parked one takes over (the paper's k).
        min_tokens: spans of fewer patches stay whole (of 28 or less, the defaults keep fewer than ``neighbours``).
        scope: what shares a budget and neighbours: ``span``, or ``global``, all images of a call.
    """

    keep: float = 0.35
    block: int | None = None
    stabilise: int | None = None
    neighbours: int = 10
    min_tokens: int = 29
    scope: Literal["span", "global"] = "span"

    paper: ClassVar[str] = "IPCV (2512.18747)"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"block": 1, "stabilise": 0, "neighbours": 1, "min_tokens": 0}
        why = {"block": " (block - 1 gives the score)"}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ConfigError(f"IPCV: {name}={value} is too small: give at least {smallest}{why.get(name, '')}")

    def sites(self, host: Host) -> Sequence[Site]:
        block, stabilise = self.depths(host)
        if block >= host.blocks:
            raise ConfigError(
                f"IPCV: block={block} leaves no block to save work in: the tower has {host.blocks} that reach the language "
                f"model, so give 1 to {host.blocks - 1}"
            )
        if block + stabilise > host.blocks:
            raise ConfigError(
                f"IPCV: stabilise={stabilise} is more than the {host.blocks - block} blocks that are left from block {block} "
                "on: give at most those"
            )
        return [
            Site("tower", block, self.keep, action="park", unit="patch", signals=("residual",)),
            *(Site("tower", b, action="attend") for b in range(block, block + stabilise)),
            Site("tower_output", action="restore"),
        ]

    def depths(self, host: Host) -> tuple[int, int]:
        """Block before which tokens are parked, and number of stabilised blocks."""
        shallowest, early, late = (24, 7, 3) if host.has_cls else (27, 3, 7)
        share = min(1.0, host.blocks / shallowest)
        block = max(1, int(share * early + 0.5)) if self.block is None else self.block
        if self.stabilise is not None:
            return block, self.stabilise
        return block, max(0, min(max(1, int(share * late + 0.5)), host.blocks - block))

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        score = torch.linalg.vector_norm(tokens.residual.float(), dim=-1)
        if self.scope == "span":
            counts = self._counts(tokens.counts, site.keep)
            return Reduction(select.top_k(score, tokens.counts, counts), counts)
        best = select.top_k(score, tokens.counts, [min(1, n) for n in tokens.counts])
        score = score.index_fill(0, best, torch.inf)
        kept = select.top_k(score, (len(tokens),), self._pool(tokens, site.keep))
        per_span = torch.bincount(tokens.segment[kept], minlength=len(tokens.counts)).tolist()
        return Reduction(kept, tuple(int(n) for n in per_span))

    def _counts(self, counts: Sequence[int], keep: float) -> tuple[int, ...]:
        """Patches kept of each span."""
        return tuple(n if n < self.min_tokens else max(survivors(n, keep), min(1, n)) for n in counts)

    def _pool(self, tokens: Tokens, keep: float) -> tuple[int]:
        """Patches kept of all spans together."""
        n, spans = len(tokens), sum(map(bool, tokens.counts))
        return (n if n < self.min_tokens else max(survivors(n, keep), spans),)

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        before, state = parked.tokens.hidden, parked.state
        if not state:
            n, kept = parked.tokens.counts, tokens.counts
            is_kept = torch.zeros(len(before), dtype=torch.uint8, device=before.device).index_fill(0, parked.keep, 1)
            rest = torch.argsort(is_kept, stable=True)[: len(before) - len(parked.keep)]
            away = tuple(a - b for a, b in zip(n, kept))
            if self.scope == "global":
                away, kept = (sum(away),), (sum(kept),)
            state["rest"], state["bags"] = rest, neighbours.bags(away, kept, self.neighbours)
            state["index"] = neighbours.nearest(before[rest], away, before[parked.keep], kept, self.neighbours)
        rest = state["rest"]
        change = (tokens.hidden - before[parked.keep]).float()
        moved = before[rest] + neighbours.bag_means(change, state["index"], state["bags"])
        out = torch.empty_like(before).index_copy(0, parked.keep, tokens.hidden.to(before.dtype))
        return out.index_copy(0, rest, moved.to(before.dtype))

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.action != "park":
            return 0
        n, kept = tokens.counts, self._counts(tokens.counts, site.keep)
        if self.scope == "global":
            n, kept = (len(tokens),), self._pool(tokens, site.keep)
        away = tuple(a - b for a, b in zip(n, kept))
        return neighbours.products(away, kept, tokens.hidden.shape[-1]) if sum(away) else 0
