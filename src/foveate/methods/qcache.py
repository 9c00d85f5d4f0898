"""Q Cache: layers attend with the queries and keys of the layer before them, and compute values alone (a reconstruction)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from foveate.answers import Reuse
from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site, Unit
from foveate.pruners import SingleRatio, from_the_start
from foveate.schedule import survivors


@dataclass(frozen=True)
class QCache(SingleRatio):
    """Let lazy layers reuse queries and keys of the last layer with its own; their caches hold values only (a reconstruction).

    From the paper, at second hand (no code is public): neighbouring layers attend alike, so consecutive layers whose
    last-row attention differs little (Jensen-Shannon divergence on some samples) are a block, of which the first layer
    computes queries and keys, in the prompt and while decoding, and the others only values; sharing for all tokens, or for
    visual ones alone (``tokens="visual"``), of which the headline figures are; at best more than 35 % of the cache saved.
    Ours, as its epsilon is not known: unset, the blocks are as equal as can be, so many that 0.3 of the layers compute
    their own, which saves 35 % of the cache; ``foveate.dial.attention_changes`` measures the divergences, and ``layers``
    takes the layers whose own is small (`foveate tune --search layers` finds them by the answers). Sharing is for all
    tokens by default, not for visual ones alone: there text computes its own keys, and attention sees both put together, a
    copy for each step and lazy layer, so memory is saved and no time of decoding. A cache that slides or is quantised holds
    them all; nor is memory saved with ``of="q"``.

    Attributes:
        layers: the lazy layers, in place of equal blocks. All of a block must hold the same tokens: no cut is inside one.
        ratio: share of the layers that compute their own; by default 0.3. The nearest number of layers, at least one.
        tokens: whose queries and keys are reused: ``all``, or only those of ``visual`` tokens.
        of: what is reused: queries and keys, or queries alone.
    """

    layers: tuple[int, ...] | None = None
    tokens: Literal["visual", "all"] = "all"
    of: Literal["qk", "q"] = "qk"

    unit: ClassVar[Unit] = "cache"
    usual: ClassVar[float] = 0.3
    how_much: ClassVar[tuple[str, ...]] = ("layers", "ratio")
    paper: ClassVar[Paper] = Paper(
        "Q Cache: Visual Attention is Valuable in Less than Half of Decode Layers for Multimodal Large Language Model",
        "AAAI",
        2026,
        "2602.01901",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and self.ratio is not None:
            raise ConfigError(f"{self.name()}: layers and ratio both say which layers are lazy: give one of them")

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        blocks = max(1, survivors(host.layers, ratio))
        own = {host.layers * block // blocks for block in range(blocks)}
        return self._reusing([layer for layer in range(host.layers) if layer not in own])

    def sites(self, host: Host) -> Sequence[Site]:
        if self.layers is None:
            return super().sites(host)
        lazy = {from_the_start(layer, host) for layer in self.layers}
        if 0 in lazy:
            raise ConfigError(f"{self.name()}: layer 0 has no layer before it to reuse: name layers from 1 on")
        return self._reusing(lazy)

    def _reusing(self, lazy: Collection[int]) -> list[Site]:
        found, source = [], 0
        for layer in range(max(lazy, default=-1) + 1):
            source = source if layer in lazy else layer
            if layer in lazy:
                found.append(Site("decoder", layer, action="reuse", reuse=Reuse(source, self.of, self.tokens)))
        return found
