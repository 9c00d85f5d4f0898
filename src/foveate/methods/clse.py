"""CLSE: tokens whose fine detail the first layers change, and to which the last token attends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import spectrum
from foveate.ops.segments import segment_mean, segment_sum
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, check_within
from foveate.signal import Signal
from foveate.tokens import Tokens

BEFORE = Signal("hidden", 0)  # as they enter the language model


@dataclass(frozen=True)
class CLSE(DecoderPruner):
    """Before a decoder layer keep tokens whose high frequencies change and that are attended to; later, those attended to.

    From the paper: an image's tokens are a picture of as many channels, whose high frequencies say how much detail is in each
    token; what has changed of it from one layer to another one says how the token evolves. From the authors' code: a Gaussian
    takes low frequencies away, the mean magnitude over channels is left; its change is divided by itself and its mean over
    the image, 1 at most, brought to a mean of 0 and a deviation of ``temperature``, and its sigmoid is multiplied by the
    last token's attention in the layer before, mean over heads; what enters layers 0 and 1 is compared, and 330, 210 and 62 of
    576 tokens are left from layers 1, 11 and 21 of 32 on; once tokens are missing, attention alone ranks. Ours: frames of a
    video are ranked and normalised one by one (the code: together); layers before a cut keep what they have in the cache (in
    the code for LLaVA it is cut, too).

    Attributes:
        layers: decoder layers before which tokens leave; by default see above.
        ratios: share of the tokens present that survives at each of them; by default see above.
        cutoff: of the filter, in Nyquist frequencies of the shorter side.
        temperature: of the sigmoid; the less, the more change and little change are just 1 and 0.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    cutoff: float = 0.1
    temperature: float = 0.1

    signals: ClassVar[tuple[Signal | str, ...]] = ("last_row", BEFORE)
    paper: ClassVar[Paper] = Paper(
        "CLSE: Cross-Layer Spectral Evolution for Token Pruning in Multimodal Large Language Models",
        "ECCV",
        2026,
        "2606.24165",
        "zjubinchen/CLSE",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the Nyquist frequency", cutoff=self.cutoff)
        if not 0 < self.temperature < inf:
            raise ConfigError(f"clse: temperature={self.temperature} is no temperature: give more than 0")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((1, 11, 21), (330 / 576, 210 / 330, 62 / 210), 32, host.layers, first=1)

    def sites(self, host: Host) -> Sequence[Site]:
        first, *later = super().sites(host)
        return [first, *(replace(site, signals=("last_row",)) for site in later)]  # no grid is whole any more

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        paid = tokens.last_row.float().mean(-1)
        return paid * self.evolution(tokens) if BEFORE in tokens.signals and site.keep < 1 else paid

    def evolution(self, tokens: Tokens) -> Tensor:
        """How much the detail of each token has changed for its image, ``(N,)``, from 0 to 1; 1/2 where tokens are missing."""
        counts, segment, n = tokens.counts, tokens.segment, len(tokens.counts)
        before, now = (
            spectrum.detail(x, tokens.index, counts, tokens.spans.shape, self.cutoff)
            for x in (tokens.signal(BEFORE), tokens.hidden)
        )
        change = ((now - before).abs() / (segment_mean(before, segment, n)[segment] + before + 1e-6)).clamp(max=1)
        away = change - segment_mean(change, segment, n)[segment]
        others = torch.tensor([max(1, count - 1) for count in counts]).to(away.device, non_blocking=True)
        away = torch.where(others[segment] > 1, away, 0.0)  # two tokens change alike, but for rounding
        deviation = (segment_sum(away.square(), segment, n) / others).sqrt() + 1e-6
        return (away / deviation[segment] / self.temperature).sigmoid()
