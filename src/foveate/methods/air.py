"""AIR: text gets the parts of an image that are like its outliers once more, beside late FFNs (a reconstruction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, silu

from foveate.answers import Remember
from foveate.errors import ConfigError
from foveate.method import Host, Method, Paper, Site, Unit
from foveate.ops import select, windows
from foveate.ops.segments import segment_mean, to_padded
from foveate.ops.transport import sinkhorn
from foveate.pruners import from_the_start
from foveate.site import Into
from foveate.tokens import Tokens


@dataclass(frozen=True)
class AIR(Method):
    """Keep the windows of an image near its outliers, and add them beside late FFNs while decoding (a reconstruction).

    It removes nothing: it is against hallucinations, not for speed.
    From the paper, at second hand (its code is not released): the prototype is the mean visual token, and the ``outliers``
    are the tokens farthest from it (L2); of patches of the image those are chosen whose optimal-transport distance to the
    outliers (Sinkhorn, cosine costs) is at most ``tau``; their embeddings Z are added to the FFN as phi(x Z^T) Z in late
    layers, 26 to 31 of 32 for LLaVA-1.5-7B, for the words that are generated.
    Ours, as sizes, tau and epsilon are not known: windows of visual tokens stand for crops that are encoded again; ``tau``
    counts mean distances of the image; rows of Z have unit length; phi is SiLU, and x the token's own FFN input (the paper:
    a reduced hidden state); every frame of a video by itself; the defaults of all numbers.

    Attributes:
        layers: decoder layers beside whose FFN Z is added; by default the last ones from 26/32 of the depth on.
        outliers: how many tokens of an image are compared with its windows.
        window: side of a window, in tokens.
        tau: distance up to which a window is chosen, in mean distances of the windows of the image.
        epsilon: strength of the entropic term of optimal transport, above 0.
        strength: factor of what is added; 0 adds nothing.
        into: ``generated`` words, the ``prompt``, or all ``text``.
    """

    layers: tuple[int, ...] | None = None
    outliers: int = 64
    window: int = 6
    tau: float = 1.0
    epsilon: float = 0.1
    strength: float = 1.0
    into: Into = "generated"

    unit: ClassVar[Unit] = "none"
    paper: ClassVar[Paper] = Paper(
        "Look Carefully: Adaptive Visual Reinforcements in Multimodal Large Language Models for Hallucination Mitigation",
        "ICLR",
        2026,
        "2602.24041",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("outliers", 1), ("window", 1), ("tau", 0), ("strength", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{self.name()}: {name}={getattr(self, name)} is too small: give at least {least}")
        if self.epsilon <= 0:
            raise ConfigError(f"{self.name()}: epsilon={self.epsilon} is not above 0, and costs are divided by it")

    def sites(self, host: Host) -> Sequence[Site]:
        late = range(min(round(host.layers * 26 / 32), host.layers - 1), host.layers)
        layers = late if self.layers is None else sorted({from_the_start(layer, host) for layer in self.layers})
        return [Site.remember(), *(Site.inject(layer, self.into) for layer in layers)]

    def remember(self, tokens: Tokens, site: Site) -> Remember:
        unit = normalize(tokens.hidden.float(), dim=-1)
        if not len(tokens):
            return Remember(unit.to(tokens.hidden.dtype), tokens.counts)
        near = tokens.keep_mask(self._near(tokens, unit))
        return Remember(unit[near.keep].to(tokens.hidden.dtype), near.counts)

    @torch.no_grad()
    def _near(self, tokens: Tokens, unit: Tensor) -> Tensor:
        """``(N,)`` bool: tokens in windows that are near the outliers of their image."""
        spans, shapes, width = len(tokens.counts), tokens.spans.shape, unit.shape[-1]
        side = windows.fitting(shapes, self.window)
        most, cells = windows.most(shapes, side), side**2
        window, place = windows.places(tokens.index, tokens.segment, shapes, side)
        window = tokens.segment * most + window
        nowhere = spans * most * cells  # where appended tokens are, which are in no window
        cell = torch.where(tokens.appended, nowhere, window * cells + place)
        held = torch.zeros(nowhere + 1, dtype=torch.bool, device=unit.device).index_fill(0, cell, True)[:-1]
        tiled = unit.new_zeros(nowhere + 1, width).index_copy(0, cell, unit)[:-1].view(spans, -1, width)

        wide = tokens.hidden.float()
        far = (wide - segment_mean(wide, tokens.segment, spans)[tokens.segment]).norm(dim=-1)
        asked = [min(self.outliers, n) for n in tokens.counts]
        unusual = to_padded(unit[select.top_k(far, tokens.counts, asked)], asked)  # (S, Q, C)
        there = to_padded(torch.ones(sum(asked), dtype=torch.bool, device=unit.device), asked)[:, None, :, None]
        cost = (1 - unusual @ tiled.transpose(1, 2)).view(spans, -1, most, cells).transpose(1, 2)
        distance = sinkhorn(cost, held.view(spans, most, 1, cells) & there, self.epsilon)  # (S, windows)

        full = held.view(spans, most, cells).any(-1)
        mean = (distance * full).sum(-1, keepdim=True) / full.sum(-1, keepdim=True).clamp(min=1)
        return (full & (distance <= self.tau * mean)).flatten()[window] & ~tokens.appended

    def inject(self, x: Tensor, memory: Tensor, site: Site) -> Tensor:
        return self.strength * (silu(x @ memory.T) @ memory)

    def flops(self, tokens: Tokens, site: Site) -> int:
        widest = min(self.outliers, max(tokens.counts, default=0))
        side = windows.fitting(tokens.spans.shape, self.window)
        cells = windows.most(tokens.spans.shape, side) * side**2
        return 2 * len(tokens.counts) * widest * cells * tokens.hidden.shape[-1]

    def inject_flops(self, x: Tensor, memory: Tensor, site: Site) -> int:
        return 4 * x.numel() * len(memory)
