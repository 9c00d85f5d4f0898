"""VTC-CLS: the attention of the CLS token in several vision blocks ranks the visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.errors import UnsupportedSiteError
from foveate.method import Host, Paper, Site
from foveate.pruners import EntryPruner
from foveate.signal import Signal
from foveate.tokens import Tokens


@dataclass(frozen=True)
class VTCCLS(EntryPruner):
    """At the tower's output keep the tokens that the CLS token attends to most in the vision blocks from ``block`` on.

    From the authors' code: attention of the CLS token, mean over heads, summed over the blocks 16 to 22 of CLIP's 24, up to
    the one whose output is used; the best of an image stay, in raster order; one of the published budgets, 64 of 576; and that
    the minimum or the maximum may stand in place of the sum. The code renumbers positions; ours keeps them (``positions=
    "native"`` gives theirs). Ours: the same share of the depth in other towers; in those without a CLS token the attention
    that a token receives from all, and with a 2x2 merger a token is the 2x2 block; the count is the nearest.

    Attributes:
        block: first vision block that counts; by default at 16/23 of those whose output is used. Negative: from the end.
        ensemble: what ranks a token: the ``sum`` over the blocks, the ``max`` or the ``min``.
    """

    block: int | None = None
    ensemble: Literal["sum", "max", "min"] = "sum"

    where: ClassVar[tuple[str, ...]] = ("block",)
    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs",
        "arXiv",
        2024,
        "2412.05819",
        "THU-MIG/VTC-CLS",
    )

    def sites(self, host: Host) -> Sequence[Site]:
        first = min(round(host.blocks * 16 / 23), host.blocks - 1) if self.block is None else self.block
        if not -host.blocks <= first < host.blocks:
            raise UnsupportedSiteError(
                f"vtccls: there is no vision block {first} whose output is used: there are {host.blocks}, 0 to "
                f"{host.blocks - 1}"
            )
        kind = "cls_row" if host.has_cls else "received"
        blocks = range(first % host.blocks, host.blocks)
        return [Site.output(self.share, signals=tuple(Signal(kind, block) for block in blocks))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        paid = torch.stack([tokens.signal(each).float() for each in site.asked])
        paid = paid if paid.dim() == 2 else paid.mean(-1)  # of a CLS token, heads apart
        return paid.sum(0) if self.ensemble == "sum" else paid.amax(0) if self.ensemble == "max" else paid.amin(0)
