"""SPU: LUVC's Spectrum Pruning Unit, inside the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Paper, Site
from foveate.ops import spectrum
from foveate.ops.segments import offsets, ranges
from foveate.pruners import DecoderPruner
from foveate.schedule import Spelling
from foveate.tokens import Tokens


@dataclass(frozen=True)
class SPU(DecoderPruner):
    """Score visual tokens by a low-pass filter and drop them at a few layers, until the last one has none.

    This is the second half of `LUVC`.
    From what is published: a low-pass filter that needs neither attention nor similarity gives one number per token;
    pruning is gradual, a cascade, and leaves no visual token in the last layer. No code, filter, axis, sign, layer or ratio
    is published. ``low_frequency_energy`` through a ``notch`` of 0.85 with ``mirror=False, normalise=False`` is the score of
    VTC-LFC (NeurIPS 2022), the one earlier pruner of this kind, without its attention factor; on a cascade it lost to a random
    cut (docs/methods/luvc.md). So the default is ours: tokens that the low-pass image explains are redundant. Its schedule is
    one cut at the start and one at the end, as good here at one cost; it gives up the gradual pruning, which is ``halving``.
    A span is filtered by itself, survivors in raster order; survivors keep their positions.

    Attributes:
        schedule: ``early`` (by default), half before the first layer; ``halving`` at 1/4, 1/2 and 3/4 of the depth;
            ``linear``. All leave nothing in the last layer. Or another one: (layer, share of all tokens from there on) pairs.
        ratio: what is left where the named schedule says a half (its shares to a power); by default a half.
        every: layers from one stage of the named schedule to the next; by default as it has it.
        mode: keep tokens of which the filter takes most away, ``residual`` (L2 norm), or those with the most
            ``low_frequency_energy`` (L1 norm of what passes).
        filter: ``gaussian`` around zero, or a ``notch`` at Nyquist's frequency.
        cutoff: of the filter, in Nyquist frequencies; a notch of 1 lets everything pass.
        along: what is filtered: the ``tokens`` of a span, or the ``channels`` of a token.
        mirror: continue both ends by their mirror image; else they wrap around.
        normalise: bring hidden states to an RMS of one first (without the layer's learned scales).
    """

    schedule: Spelling | None = None
    ratio: float | None = None
    every: int | None = None
    mode: Literal["residual", "low_frequency_energy"] = "residual"
    filter: Literal["gaussian", "notch"] = "gaussian"
    cutoff: float = 0.2
    along: Literal["tokens", "channels"] = "tokens"
    mirror: bool = True
    normalise: bool = True

    usual_name: ClassVar[str] = "early"
    paper: ClassVar[Paper] = Paper(
        "Towards Lossless Ultimate Vision Token Compression for VLMs", "arXiv", 2025, "2512.09010"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cutoff <= 1:
            raise ConfigError(f"cutoff={self.cutoff}: give it in Nyquist frequencies, from 0 to 1")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"every={self.every}: layers from one stage of a named schedule to the next, at least 1")

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        if site.keep == 1:  # everything stays, whatever the scores are
            return torch.zeros(len(tokens), device=tokens.hidden.device)
        x = tokens.hidden.float()
        if self.normalise:
            x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        if self.along == "tokens":
            low = spectrum.low_pass(x, tokens.counts, self.cutoff, self.filter, self.mirror)
        else:
            low = spectrum.low_pass_channels(x, self.cutoff, self.filter, self.mirror)
        if self.mode == "low_frequency_energy":
            return low.abs().sum(-1)
        residual: Tensor = torch.linalg.vector_norm(low.sub_(x), dim=-1)
        if self.along == "channels":
            return residual
        mean_passes = spectrum.gain(residual.new_zeros(()), self.cutoff, self.filter) == 1
        return torch.where(mean_passes, _even(residual, tokens.counts), residual)


def _even(residual: Tensor, counts: Sequence[int]) -> Tensor:
    """Make the residuals of a span of two tokens equal.

    The two are equally far from what passes if their mean passes whole, but for rounding; so the earlier one stays, in every
    batch and under every attention.
    """
    pairs = [start for start, n in zip(offsets(counts), counts) if n == 2]
    rows = ranges(pairs, [2] * len(pairs), residual.device)
    return residual.index_copy(0, rows, residual[rows].view(-1, 2).mean(1).repeat_interleave(2))
