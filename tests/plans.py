"""The methods that the invariants are tested with: every kind of site, signal and reduction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import Tensor

import foveate
from foveate import (
    ADSC,
    IPCV,
    LUVC,
    OIM,
    SPU,
    VTW,
    DivPrune,
    Downsample,
    DyCoke,
    FastV,
    Host,
    Method,
    Random,
    Site,
    Stride,
    Tokens,
    ToMe,
    V2Drop,
    VisionZip,
)
from foveate.ops import select
from foveate.tokens import Reduction


@dataclass(frozen=True)
class Ragged(Method):
    """Another number of units of every image or tile."""

    block: int = 1
    mid: bool = False
    kept: ClassVar[list[list[int]]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", self.block, where="mid" if self.mid else "before")]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        stays = (tokens.index + tokens.segment) % (2 + tokens.segment % 3) == 0
        type(self).kept[:] = [tokens.index[stays & (tokens.segment == s)].tolist() for s in range(len(tokens.counts))]
        return tokens.keep_mask(stays)


@dataclass(frozen=True)
class ParkHalf(Method):
    """Test only: every second patch skips the blocks between ``first`` and ``last``, then comes back."""

    first: int = 1
    last: int = 3
    mid: bool = False

    def sites(self, host: Host) -> Sequence[Site]:
        where = "mid" if self.mid else "before"
        return [
            Site("tower", self.first, 0.5, where=where, action="park", unit="patch"),
            Site("tower", self.last, action="restore"),
        ]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site.keep)
        return Reduction(select.stride(tokens.counts, counts), counts)


@dataclass(frozen=True)
class DropBlocks(Method):
    """Test only: evenly spaced tokens survive before a vision block."""

    keep: float = 0.5
    block: int = 1

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", self.block, self.keep)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site.keep)
        ranked = tokens.keep_best(
            -((tokens.index * 7) % 5).float(), site.keep
        )  # neither order nor size of spans matters
        assert ranked.counts == counts
        return ranked


@dataclass(frozen=True)
class Received(Method):
    """Test only: every attention signal at once, at one decoder layer."""

    keep: float = 0.5
    layer: int = 3

    def sites(self, host: Host) -> Sequence[Site]:
        signals = ("received", "text_rows", "last_row", "keys", "values", "residual", "text")
        return [Site("decoder", self.layer, self.keep, signals=signals)]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        flat = (tokens.keys * tokens.values).flatten(1).sum(1) + tokens.residual.norm(dim=-1)
        assert tokens.text.shape[0] == sum(tokens.text_counts)
        return tokens.received + tokens.text_rows.sum(1) + tokens.last_row.sum(1) + 0 * flat


FULL = {  # every method with nothing removed
    "random": Random(keep=1.0),
    "stride": Stride(keep=1.0, layers=(0, 2)),
    "fastv": FastV(keep=1.0),
    "v2drop": V2Drop(keeps=(1.0, 1.0, 1.0)),
    "divprune": DivPrune(keep=1.0),
    "downsample": Downsample(keep=1.0),
    "dycoke": DyCoke(keep=1.0),
    "luvc": LUVC(keep=1.0, merge=1.0),
    "oim": OIM(merge=1.0),
    "spu": SPU(keep=1.0, mode="residual"),
    "adsc": ADSC(keep=1.0),
    "ipcv": IPCV(keep=1.0),
    "blocks": DropBlocks(keep=1.0),
    "renumber": Stride(keep=1.0, positions="renumber"),
}

PLANS = {
    "stride": Stride(keep=0.5),
    "random": Random(layer=2, keep=0.3),
    "cascade": Stride(keep=0.5, layers=(0, 2, 4)),
    "fastv": FastV(),
    "vtw": VTW(),
    "v2drop": V2Drop(),
    "divprune": DivPrune(keep=0.3),
    "tome": ToMe(),
    "visionzip": VisionZip(keep=0.4, contextual=0.3),
    "downsample": Downsample(keep=0.5),
    "native": Downsample(keep=0.5, positions="native"),
    "renumber": Stride(keep=0.5, layers=(0, 2), positions="renumber"),
    "luvc": LUVC(keep=0.6, schedule="halving", mode="low_frequency_energy", filter="notch"),
    "luvc-small": LUVC(positions="renumber", schedule="linear", similarity="keys", normalise=False),
    "oim": OIM(merge=None, passes=((1, "height", 0.7), (1, "width", 0.5), (3, "height", 0.6)), weighted=False),
    "oim-shared": OIM(merge=0.5, shared=True, positions="native"),
    "spu": SPU(keep=0.7, along="channels", every=1),
    "luvc-usual": LUVC(),
    "downsample+luvc": Downsample(keep=0.6) + LUVC(),
    "adsc": ADSC(),
    "adsc-2d": ADSC(keep=0.5, layers=(1, 4), pattern="2d", offset="first"),
    "adsc-checker": ADSC(keep=0.4, pattern="checker", positions="renumber"),
    "tome+adsc": ToMe(keep=0.7) + ADSC(keep=0.4),
    "tome+fastv": ToMe(keep=0.7) + FastV(),
    "ipcv": IPCV(stabilise=2, neighbours=3),
    "ipcv-plain": IPCV(keep=0.1, block=2, stabilise=0, min_tokens=0),
    "ipcv+visionzip+fastv": IPCV() + VisionZip(keep=0.4) + FastV(),
    "park": ParkHalf(),
    "park-mid": ParkHalf(mid=True),
    "blocks": DropBlocks(),
    "signals": Received(),
}

# A method that has no plan yet runs with its defaults, so that a new file is tested without an edit here.
for name, cls in foveate.list_methods().items():
    if not any(isinstance(part, cls) for method in PLANS.values() for part in method.parts()):
        PLANS[name] = cls()


plan = pytest.mark.parametrize("plan", PLANS)
