"""FasterVLM: the tokens that the CLS token looks at stay, and nothing else is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.method import Host, Paper, Site
from foveate.pruners import EntryPruner
from foveate.tokens import Tokens


@dataclass(frozen=True)
class FasterVLM(EntryPruner):
    """At the tower's output keep the tokens that receive most attention of the CLS token.

    From the paper: attention of the CLS token ranks tokens better than the language model's own, and 5 % may be enough (the
    first version of arXiv 2412.01818; the second one is `VisPruner`). From the authors' code: the last block whose output is
    used, mean over heads; survivors in raster order; tiles of an image each by itself. Ours: tokens leave before the projector
    (the code projects all of them first, which gives the same); original positions (``positions="native"`` gives theirs);
    without a CLS token, attention received from all; with a 2x2 merger a token is the 2x2 block; the count is the nearest.
    """

    usual: ClassVar[float] = 0.05
    paper: ClassVar[Paper] = Paper(
        "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
        "arXiv",
        2024,
        "2412.01818",
        "Theia-4869/FasterVLM",
    )

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.output(self.share, signals=("cls_row" if host.has_cls else "received",))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.cls_row.float().mean(-1) if "cls_row" in tokens.signals else tokens.received.float()
