"""ADSC: evenly spaced tokens at a few decoder layers; training teaches the model to move what it needs into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from foveate.method import Host, Method, Paper, Site
from foveate.ops import lattice, select
from foveate.schedule import check_ratio, ratio_for_mean
from foveate.tokens import Reduction, Tokens

#: Visual tokens removed, averaged over the layers, and the ``keep`` that removes them; see the docstring for their sources.
BUDGETS = {"66.7%": 1 / 3, "77.8%": 2 / 9, "88.9%": 1 / 9}
DEPTH = 32
STAGES = (4, 10, 16)


@dataclass(frozen=True)
class ADSC(Method):
    """Down-sample every span evenly, by the same ratio, before each of a few decoder layers.

    From the abstract: no score, no module, no change to attention; uniform down-sampling by a fixed ratio at selected layers,
    as a bottleneck that makes attention move what is needed into the tokens that stay; 98.2 % of LLaVA-1.5-7B's accuracy with
    53.7 % fewer FLOPs and 56.7 % less cache.
    From summaries of the paper by others: LoRA training with a reverse curriculum over ratios (`foveate train adsc`), and that
    the result above is that of the setting "66.7 %", which we read as tokens removed on average over the layers (``keep=1/3``).
    Ours, as the paper's layers, stride and code are not public: layers 4, 10 and 16 of 32, scaled to the model, which at
    1/3 gives a ratio near 1/2 and the published savings; at half those depths, or a quarter, where the layers before the
    first cut would spend more than two thirds of the budget; of each group of neighbours the last token stays, as under
    causal attention only it can see the others; original position ids; the other two of `BUDGETS`, 77.8 and 88.9 % removed.
    Without training this is a control. The published accuracy is with training.

    Attributes:
        keep: mean share of the visual tokens per decoder layer.
        layers: decoder layers before which tokens leave; empty: scaled with the model and ``keep``, see above.
        pattern: ``1d``: evenly spaced tokens in raster order; ``2d``: alternate columns, then alternate rows, and so on;
            ``checker``: a checkerboard, then alternate columns and rows of it, and so on. What is between two steps of
            the last two is filled up evenly.
        offset: which token of each group stays, the ``last`` or the ``first``.
    """

    keep: float = 1 / 3
    layers: tuple[int, ...] = ()
    pattern: Literal["1d", "2d", "checker"] = "1d"
    offset: Literal["last", "first"] = "last"

    paper: ClassVar[Paper] = Paper(
        "Vision Token Reduction via Attention-Driven Self-Compression for Efficient Multimodal Large Language Models",
        "IEEE BigData",
        2025,
        "2602.12618",
    )
    training_free: ClassVar[bool] = False

    def sites(self, host: Host) -> Sequence[Site]:
        layers = self._layers(host)
        ratio = ratio_for_mean(layers, host.layers, self.keep)
        return Site.cascade("decoder", [(layer, ratio**cut) for cut, layer in enumerate(layers, 1)])

    def with_share(self, share: float, host: Host) -> Method:
        """From what the layers before the first cut spend (nothing, where ``layers`` is empty) to everything."""
        check_ratio("share", share)
        least = self._layers(host)[0] / host.layers if self.layers else 0.0
        return replace(self, keep=least + share * (1 - least))

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site)
        if self.pattern == "1d":
            return Reduction(select.stride(tokens.counts, counts, tokens.index.device, self.offset), counts)
        sides = [side for shape in tokens.spans.shape for side in shape]
        at_most = max(sides, default=1).bit_length()
        shift = int(self.offset == "last")
        width = torch.tensor([shape[1] for shape in tokens.spans.shape]).to(tokens.index.device, non_blocking=True)
        width = width[tokens.segment]
        y, x = tokens.index // width + shift, tokens.index % width + shift
        level = lattice.halvings(y, x, self.pattern, at_most)
        return Reduction(select.nested(level, tokens.counts, counts, 2 * at_most + 2), counts)

    def _layers(self, host: Host) -> list[int]:
        """In order, counted from the beginning."""
        n = host.layers
        if self.layers:  # `ratio_for_mean` says what is wrong with them
            return sorted(layer + n if -n <= layer < 0 else layer for layer in self.layers)
        halvings = 0
        while True:
            layers = sorted({round(n * stage / DEPTH / 2**halvings) for stage in STAGES})
            if layers[0] <= max(0.0, self.keep * n * 2 / 3):
                return layers
            halvings += 1
