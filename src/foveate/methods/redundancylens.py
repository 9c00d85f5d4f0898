"""RedundancyLens: visual tokens use few channels of late FFNs, and see only neighbours there (layers: a reconstruction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch

from foveate.answers import Answer, Channels, Sight
from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site, Unit
from foveate.ops import select
from foveate.ops.segments import segment_mean
from foveate.pruners import SingleRatio, from_the_start
from foveate.schedule import survivors
from foveate.tokens import Tokens


@dataclass(frozen=True)
class RedundancyLens(SingleRatio):
    """In some layers, visual tokens use few channels of the FFN and attend to near ones alone (layers: a reconstruction).

    From the paper, at second hand (the authors' code cannot be read): probe-activated dynamic FFN, a few visual tokens go
    through gate and up, and the fifth of the channels with the largest mean activation serves all of them; hollow attention, a
    visual token sees all text before it and only the last 256 visual places, itself included; text sees everything and uses
    the whole FFN; layers are ranked by a greedy search, for each of the two.
    From a port by others: a tenth of the tokens as probes, evenly spaced; activations are ``|act(gate) * up|``. (The port
    trims only the down projection; here gate, up and down of the visual rows shrink.)
    Ours: each image or video has probes of its own; without a ranking, the deepest half of the layers, or more where ``keep``
    asks for it, and the same ones for both; `foveate tune --search layers --max-kl` ranks them on unlabelled prompts: those
    of FFNs, or with ``layers=()`` those of hollow attention.
    Hollow attention is a mask, which saves no time by itself; tokens and cache stay as they are.

    Attributes:
        layers: those whose FFN visual tokens use in part; by default the deepest half.
        hollow_layers: those in which they attend to near ones alone; by default the same as ``layers``; ``()``: none.
        ratio: share of the channels that they use; by default 0.2.
        window: how many places before it a visual token sees of the other ones.
        sample: share of an image's tokens that are probes.
    """

    layers: tuple[int, ...] | None = None
    hollow_layers: tuple[int, ...] | None = None
    window: int = 255
    sample: float = 0.1

    unit: ClassVar[Unit] = "compute"
    usual: ClassVar[float] = 0.2
    where: ClassVar[tuple[str, ...]] = ("layers", "hollow_layers")
    may_be_empty: ClassVar[tuple[str, ...]] = where
    paper: ClassVar[Paper] = Paper(
        "RedundancyLens: Revealing and Exploiting Visual Token Processing Redundancy for Efficient Decoder-Only MLLMs",
        "Findings of ACL",
        2025,
        "2501.19036",
        "L-Hugh/RedundancyLens",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 0:
            raise ConfigError(f"{self.name()}: window={self.window} is negative: give a number of places, 0 or more")
        if not 0 < self.sample <= 1:
            raise ConfigError(
                f"{self.name()}: sample={self.sample} is no share of tokens to probe: give more than 0, up to 1"
            )
        if self.layers == () and self.hollow_layers in ((), None):
            raise ConfigError(f"{self.name()}: layers=() leaves nothing to do: name layers, or hollow_layers")

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        if ratio == 1:
            return []
        layers = self._layers(host)
        hollow = layers if self.hollow_layers is None else _counted(self.hollow_layers, host)
        turns = [i for i in range(host.layers) if (i in hollow) != (i - 1 in hollow)]  # where it begins, or ends
        sights = [Site.sight(i, keep=ratio if i in hollow else 1.0) for i in turns]
        return sights + [Site.channels(i, keep=ratio) for i in layers]

    def least(self, host: Host) -> float:
        return 0.0 if self.layers is None else self._left(0.0, host)

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "sight":
            everybody = torch.ones(2, 2, dtype=torch.bool)
            return Sight(torch.zeros_like(tokens.index), everybody, None if site.keep == 1 else self.window)
        assert tokens.activations is not None, "sites of channels are given them"
        counts = tuple(survivors(n, self.sample) for n in tokens.counts)
        probes = select.stride(tokens.counts, counts, tokens.index.device)
        strength = tokens.activations(tokens.hidden[probes]).float().abs()
        clips = tokens.spans.clips
        of = tuple(clip for clip, spans in enumerate(clips) for _ in spans)
        image = torch.tensor(of).to(probes.device, non_blocking=True)[tokens.segment[probes]]
        means = segment_mean(strength, image, len(clips))
        used = max(1, survivors(means.shape[1], site.keep))
        best = means.argsort(dim=1, descending=True, stable=True)[
            :, :used
        ]  # of equal channels the first, on any device
        return Channels(best.sort().values, of)

    def _layers(self, host: Host) -> list[int]:
        """Layers whose FFN is used in part."""
        if self.layers is not None:
            return _counted(self.layers, host)
        wanted = 0.0 if self.keep is None else host.layers * (1 - self.keep) / (1 - self.usual)
        n = min(host.layers, max(1, host.layers // 2, ceil(wanted - 1e-9)))
        return list(range(host.layers - n, host.layers))


def _counted(layers: Sequence[int], host: Host) -> list[int]:
    return sorted({from_the_start(layer, host) for layer in layers})
