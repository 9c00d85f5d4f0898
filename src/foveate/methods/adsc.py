"""ADSC: evenly spaced tokens at a few decoder layers; training teaches the model to move what it needs into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from foveate.learning import Stage
from foveate.losses import Answer
from foveate.method import Host, Paper, Site
from foveate.ops import lattice, select
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, Spelling
from foveate.tokens import Reduction, Tokens

#: Visual tokens removed, averaged over the layers, and the ``keep`` that removes them; see the docstring for their sources.
BUDGETS = {"66.7%": 1 / 3, "77.8%": 2 / 9, "88.9%": 1 / 9}
DEPTH = 32
STAGES = (4, 10, 16)


@dataclass(frozen=True)
class ADSC(DecoderPruner):
    """Down-sample every span evenly, by the same ratio, before each of a few decoder layers.

    From the abstract: no score, no module, no change to attention; uniform down-sampling by a fixed ratio at selected layers,
    as a bottleneck that makes attention move what is needed into the tokens that stay; 98.2 % of LLaVA-1.5-7B's accuracy with
    53.7 % fewer FLOPs and 56.7 % less cache.
    From summaries of the paper by others: LoRA training with a reverse curriculum over ratios (`foveate train adsc`), and that
    the result above is that of the setting "66.7 %", which we read as tokens removed on average over the layers (``keep=1/3``).
    Ours, as the paper's layers, stride and code are not public: layers 4, 10 and 16 of 32, scaled to the model, which at
    1/3 gives a ratio near 1/2 and the published savings; at half those depths, or a quarter, where the layers before the
    first cut would spend more than two thirds of the budget; of each group of neighbours the last token stays, as under
    causal attention only it can see the others; original position ids; the other two of `BUDGETS`, 77.8 and 88.9 % removed; in
    training the stock LoRA recipe of LLaVA-1.5 on all linear layers of the language model, no loss but the next token's,
    the projector as it is, and a curriculum from the hardest ratio to the target in thirds.
    Without training this is a control. The published accuracy is with training.

    Attributes:
        layers: decoder layers before which tokens leave; by default scaled with the model and ``keep``, see above.
        ratio: share of the tokens present that survives at each of them; by default what makes ``keep`` 1/3.
        schedule: in place of both.
        pattern: ``1d``: evenly spaced tokens in raster order; ``2d``: alternate columns, then alternate rows, and so on;
            ``checker``: a checkerboard, then alternate columns and rows of it, and so on. What is between two steps of
            the last two is filled up evenly.
        offset: which token of each group stays, the ``last`` or the ``first``.
    """

    layers: tuple[int, ...] | None = None
    ratio: float | None = None
    schedule: Spelling | None = None
    pattern: Literal["1d", "2d", "checker"] = "1d"
    offset: Literal["last", "first"] = "last"

    paper: ClassVar[Paper] = Paper(
        "Vision Token Reduction via Attention-Driven Self-Compression for Efficient Multimodal Large Language Models",
        "IEEE BigData",
        2025,
        "2602.12618",
    )
    training_free: ClassVar[bool] = False
    stages: ClassVar[tuple[Stage, ...]] = (Stage((Answer(),), lr=2e-4, trains=("lora",)),)
    curriculum: ClassVar[str] = "hard-to-easy"
    usual_keep: ClassVar[float] = BUDGETS["66.7%"]

    def usual(self, host: Host) -> Schedule:
        halvings = 0
        while True:
            found = Schedule.scaled(STAGES, (0.5,) * 3, DEPTH * 2**halvings, host.layers)
            if found.least(host.depth) <= (self.usual_keep if self.keep is None else self.keep) * 2 / 3:
                return found
            halvings += 1

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
