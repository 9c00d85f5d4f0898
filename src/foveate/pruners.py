"""Bases of methods that prune or merge: they turn options into sites, so that a method's file is its signals and its score.

`DecoderPruner` drops tokens before decoder layers, `EntryPruner` once before the first of them, `StagedPruner` at both
places, `TowerReducer` merges or drops inside the vision tower; in all four ``keep`` is the share of the visual tokens that a
decoder layer holds on average. `TowerParker` spares the tower's blocks most of the patches, and hands over all. `SingleRatio`
is for whatever else is turned by one ratio, `CachePruner` for what leaves the KV cache after the prompt.

A method that ranks by `score` may have the option ``threshold``, None by default: where it is set, the tokens whose scores
reach it survive, however many these are (`Method.cut`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.method import Host, Method, Site, Unit
from foveate.schedule import Schedule, Stage
from foveate.signal import Signal, signal_of
from foveate.site import Place
from foveate.units import left


@dataclass(frozen=True)
class DecoderPruner(Method):
    """A method that drops tokens before one or several decoder layers.

    A subclass gives its paper's setting in `usual`, its `signals` and its `score`, and declares whichever of these options it
    wants, None by default: ``layer`` and ``ratio`` (one cut), or ``layers`` and ``ratios`` (several; ``ratio``: the same at
    each); ``schedule`` in place of these: pairs of layer and share of the whole, or a name, and then ``ratio`` is what is left
    where the named one says a half, and ``every`` the layers between its stages. ``keep`` sets how much stays, at the layers
    that are given or are the paper's. Where these come too late for it, the paper's move earlier (`Schedule.earlier`), and
    given ones are refused.
    """

    signals: ClassVar[tuple[Signal | str, ...]] = ()
    #: the paper says a mean, from which its ratios follow
    usual_keep: ClassVar[float | None] = None
    #: the paper's schedule is one that has a name, in place of `usual`
    usual_name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self._option("schedule")
        if isinstance(given, tuple):
            Schedule(given)
        if given is not None:
            counts = ("ratio", "ratios", "every", "threshold") if isinstance(given, tuple) else ()
            for name in ("layer", "layers", *counts):
                if self._option(name) is not None:
                    raise ConfigError(f"{self.name()}: give either `schedule` or `{name}`")
        for one, several in (("layer", "layers"), ("ratio", "ratios")):
            if self._option(one) is not None and self._option(several) is not None:
                raise ConfigError(f"{self.name()}: give either `{one}` or `{several}`")

    def usual(self, host: Host) -> Schedule:
        """Say the paper's setting, in a model like ``host``: what unset options are."""
        raise NotImplementedError(f"{type(self).__name__} must say its usual schedule")

    def first(self, host: Host) -> int:
        """Tell the earliest layer that its cuts may move to: the first one where all of its signals exist."""
        return max((signal_of(signal).first_layer(host.layers) for signal in self.signals), default=0)

    def plan(self, host: Host) -> Schedule:
        """Tell which share of the tokens is left from each layer on; where a threshold decides, that may be all of them."""
        schedule, keep = self._native(host), self.keep
        if self.cut is not None:
            return Schedule(tuple((layer, float(share > 0)) for layer, share in schedule.stages))
        if keep is None and not any(self._option(name) is not None for name in ("schedule", "ratio", "ratios")):
            keep = self.usual_keep
        if keep is None:
            return schedule
        try:
            if not self._is_placed():
                if keep == 0:
                    return Schedule(((0, 0.0),))
                schedule = schedule.earlier(keep, host.depth, self.first(host))
            return schedule.at_mean(keep, host.depth)
        except ConfigError as error:
            raise ConfigError(f"{self.name()}: {error}") from None

    def sites(self, host: Host) -> Sequence[Site]:
        kept = Schedule(((host.layers - 1, 1.0),))
        return Site.cascade("decoder", self.plan(host).stages or kept, signals=self.signals)

    def least(self, host: Host) -> float:
        usual = self._native(host).least(host.depth)
        return usual if self._is_placed() else min(usual, self.first(host) / host.depth)

    def with_power(self, t: float, host: Host) -> Method:
        if not hasattr(self, "schedule"):
            return super().with_power(t, host)
        return self.with_schedule(self.plan(host).power(t))

    def _option(self, name: str) -> Any:
        return getattr(self, name, None)

    def _is_placed(self) -> bool:
        """Tell whether the user has said where tokens leave."""
        return any(self._option(name) is not None for name in ("layer", "layers", "schedule"))

    def _native(self, host: Host) -> Schedule:
        """Read the options, and the paper's setting where they say nothing, whatever `keep` is."""
        given, ratio = self._option("schedule"), self._option("ratio")
        given = self.usual_name if given is None else given
        if isinstance(given, tuple):
            return Schedule(tuple((from_the_start(layer, host), share) for layer, share in given))
        if given:
            named = Schedule.named(given, host.layers, self._option("every"))
            return named if ratio is None else named.power(math.log(ratio) / math.log(0.5) if ratio else math.inf)
        usual, several = self.usual(host).within(host.layers), self._option("layers")
        layers = several if self._option("layer") is None else (self._option("layer"),)
        ratio = self._option("ratios") if ratio is None else ratio
        if layers is None and ratio is None:
            return usual
        layers = usual.layers if layers is None else layers
        if ratio is None:  # one for all, where a mean decides or the paper has one
            free = self.keep is not None or self.cut is not None
            alike = len(set(usual.ratios)) == 1 or (len(layers) != len(usual.layers) and free)
            ratio = usual.ratios[0] if alike else usual.ratios
        return Schedule.cuts([from_the_start(layer, host) for layer in layers], ratio)


@dataclass(frozen=True)
class StagedPruner(DecoderPruner):
    """A method that drops or merges tokens at the vision tower's output, and drops more before decoder layers.

    It is a `DecoderPruner` whose schedule begins there: a cut of layer 0 is the one at the tower's output, which reads
    `tower_signals`. ``keep`` gives all shares one power, so that early and late cuts grow together.
    """

    def tower_signals(self, host: Host) -> tuple[Signal | str, ...]:
        """Say what the cut at the tower's output reads."""
        raise NotImplementedError(f"{type(self).__name__} must say its tower_signals")

    def before(self, share: float, host: Host) -> Site:
        """Make the site before the language model, if not at the tower's output."""
        return Site.output(share, signals=self.tower_signals(host) if share else ())

    def sites(self, host: Host) -> Sequence[Site]:
        stages = self.plan(host).stages
        share = stages[0][1] if stages and stages[0][0] == 0 else 1.0
        later = [(layer, each / share) for layer, each in stages if layer > 0] if share else []
        tower = [self.before(share, host)] if share < 1 or not later else []
        return [*tower, *Site.cascade("decoder", later, signals=self.signals)]


@dataclass(frozen=True)
class EntryPruner(Method):
    """A method that drops or merges tokens once, before the first decoder layer; ``keep`` is the share that it leaves.

    A subclass gives its paper's share in `usual`, and implements `score` or `reduce`. Where it acts (`at`) and what it reads
    (`signals`) have defaults.
    """

    at: ClassVar[Place] = "lm_entry"
    signals: ClassVar[tuple[Signal | str, ...]] = ()
    #: the paper's share, which an unset `keep` is
    usual: ClassVar[float] = 0.5

    @property
    def share(self) -> float:
        """The share of an image's tokens that is left; 1 where a threshold decides."""
        if self.cut is not None:
            return 1.0
        return self.usual if self.keep is None else self.keep

    def sites(self, host: Host) -> Sequence[Site]:
        at: Place = "tower_output" if self.at in ("pixels", "tower") and self.share == 0 else self.at  # no empty image
        return [Site(at, keep=self.share, signals=self.signals if at == self.at else ())]


@dataclass(frozen=True)
class TowerReducer(Method):
    """A method that merges or drops tokens inside the vision tower; ``keep`` is the share that it hands over.

    A subclass says its paper's share in `usual`, how it is spread over the blocks in `blocks`, and implements `reduce`, or
    `score` if it drops. As tokens can only merge into tokens, ``keep=0`` merges none and withdraws all at the tower's end.
    """

    usual: ClassVar[float] = 0.5
    signals: ClassVar[tuple[Signal | str, ...]] = ()

    @property
    def share(self) -> float:
        """The share of an image's tokens that is handed over; 1 where a threshold decides."""
        if self.cut is not None:
            return 1.0
        return self.usual if self.keep is None else self.keep

    def blocks(self, host: Host) -> Sequence[Site]:
        """Say the sites in the tower, which together leave `share`."""
        raise NotImplementedError(f"{type(self).__name__} must say its blocks")

    def sites(self, host: Host) -> Sequence[Site]:
        if self.keep == 0:
            return [Site.output(0.0)]
        least = self.least(host)
        if self.keep is not None and self.keep < least * (1 - 1e-9):
            raise ConfigError(
                f"{self.name()}: keep={self.keep:.4g} cannot be reached: {least:.4g} is the least that it can leave here"
            )
        return self.blocks(host)


@dataclass(frozen=True)
class TowerParker(Method):
    """A method that lets only some patches run through the vision tower and brings the others back at its end.

    It parks them before block ``block``; for ``stabilise`` blocks from there on the kept ones attend to all (`Method.restore`).
    ``keep`` is the mean share of the patches per vision block, in which these and the blocks before count in full; ``ratio``
    is the share that goes on. A subclass says its paper's in `usual` and `default_depths`, its `signals`, and how it chooses
    (`score` or `reduce`) and restores. Where the default depths leave ``keep`` too little, they are less in proportion.
    """

    ratio: float | None = None
    block: int | None = None
    stabilise: int | None = None

    unit: ClassVar[Unit] = "tower"
    where: ClassVar[tuple[str, ...]] = ("block", "stabilise")
    usual: ClassVar[float] = 0.5
    signals: ClassVar[tuple[Signal | str, ...]] = ()

    def default_depths(self, host: Host) -> tuple[int, int]:
        """Say the paper's ``block`` and ``stabilise`` in a model like ``host``."""
        raise NotImplementedError(f"{type(self).__name__} must say its default depths")

    def depths(self, host: Host) -> tuple[int, int]:
        """Choose the block before which patches are parked, and the number of stabilised blocks."""
        block, stabilise = self.default_depths(host)
        block = block if self.block is None else self.block
        stabilise = max(0, min(stabilise, host.blocks - block)) if self.stabilise is None else self.stabilise
        allowed = math.inf if self.keep is None else self.keep * host.blocks + 1e-9
        if allowed < block + stabilise:
            block = max(1, int(block * allowed / (block + stabilise))) if self.block is None else block
            stabilise = max(0, min(stabilise, int(allowed - block))) if self.stabilise is None else stabilise
        return block, stabilise

    def plan(self, host: Host) -> tuple[int, int, float]:
        """Choose the depths, and the share of the patches that goes on."""
        block, stabilise = self.depths(host)
        left, reach = host.blocks - block, f"of the tower's blocks {host.blocks} reach the language model"
        name, whole = type(self).__name__, block + stabilise  # blocks in which all patches count
        if left < 1:
            raise ConfigError(
                f"{name}: block={block} leaves none to save work in: {reach}, give 1 to {host.blocks - 1}"
            )
        if stabilise > left:
            raise ConfigError(f"{name}: stabilise={stabilise} is too many: {reach}, from block {block} on {left}")
        if self.cut is not None:
            return block, stabilise, 1.0
        if self.keep is None:
            return block, stabilise, self.usual if self.ratio is None else self.ratio
        if self.keep * host.blocks < whole * (1 - 1e-9):
            raise ConfigError(
                f"{name}: keep={self.keep:.4g} cannot be reached: of {host.blocks} vision blocks the first {block} and "
                f"{stabilise} stabilised ones have all patches, so {whole / host.blocks:.4g} is the least here; park earlier, "
                "stabilise fewer, or keep more"
            )
        rest = host.blocks - whole
        return block, stabilise, min(max(0.0, (self.keep * host.blocks - whole) / rest), 1.0) if rest else 1.0

    def sites(self, host: Host) -> Sequence[Site]:
        block, stabilise, ratio = self.plan(host)
        return [
            Site.park(block, ratio, unit="patch", signals=self.signals),
            *(Site.attend(b) for b in range(block, block + stabilise)),
            Site.restore(),
        ]

    def least(self, host: Host) -> float:
        return ((1 if self.block is None else self.block) + (self.stabilise or 0)) / host.blocks


@dataclass(frozen=True, kw_only=True)
class SingleRatio(Method):
    """A method that is turned by one ratio, whatever it saves and wherever its sites are; ``keep`` finds that ratio.

    A subclass says its paper's ratio in `usual`, its sites at any ratio in `at`, and what they save in ``unit``; the more the
    ratio is, the more these leave, and 1 leaves everything. What moves in steps is set to the nearest one.
    """

    ratio: float | None = None

    usual: ClassVar[float] = 0.5

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        """Say the sites that leave ``ratio`` of whatever the method reduces."""
        raise NotImplementedError(f"{type(self).__name__} must say its sites at a ratio")

    @property
    def idle(self) -> bool:
        return 1 in (self.keep, self.ratio)

    def sites(self, host: Host) -> Sequence[Site]:
        if self.cut is not None:
            return self.at(1.0, host)
        if self.keep is None:
            return self.at(self.usual if self.ratio is None else self.ratio, host)
        return self.at(self._ratio_for(self.keep, host), host)

    def least(self, host: Host) -> float:
        return self._left(0.0, host)

    def _left(self, ratio: float, host: Host) -> float:
        return left(self.unit, self.at(ratio, host), host)

    def _ratio_for(self, keep: float, host: Host) -> float:
        least, most = self._left(0.0, host), self._left(1.0, host)
        if keep < least * (1 - 1e-9):
            raise ConfigError(
                f"{self.name()}: keep={keep:.4g} cannot be reached: {least:.4g} is the least that it can leave here (it is a "
                f"share of what the unit {self.unit!r} counts)"
            )
        if keep >= most:
            return 1.0
        ratio = (keep - least) / (most - least)
        if abs(self._left(ratio, host) - keep) < 1e-9:  # as it is where one thing is cut once
            return ratio
        low, high = 0.0, 1.0
        for _ in range(40):
            ratio = (low + high) / 2
            low, high = (low, ratio) if self._left(ratio, host) > keep else (ratio, high)
        return min(low, high, key=lambda ratio: abs(self._left(ratio, host) - keep))


@dataclass(frozen=True, kw_only=True)
class CachePruner(SingleRatio):
    """A method that frees visual tokens of the KV cache after the prompt; ``keep`` is the share that it holds then, on average.

    A subclass gives its paper's share in `usual`, its `signals` and its `score`. The option ``layers`` says which caches are
    cut, by default all that grow with the prompt, and ``ratio`` how much each of these keeps.
    """

    layers: tuple[int, ...] | None = None

    unit: ClassVar[Unit] = "cache"
    signals: ClassVar[tuple[Signal | str, ...]] = ()

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        layers = host.growing_caches if self.layers is None else self.layers
        return [Site.cache(layer, ratio, signals=self.signals) for layer in layers]


def merging(blocks: Sequence[int], share: float) -> list[Stage]:
    """Spread merges over vision blocks, the same number in each, so that ``share`` of the tokens is left after the last one.

    As a block merges pairs, it halves the tokens at most: where the same number is more than that in the late blocks, the
    earlier ones merge more.
    """
    stages: list[Stage] = []
    most = share
    for number, block in reversed(list(enumerate(blocks, 1))):
        most = min(most, share + (1 - share) * (len(blocks) - number) / len(blocks))
        stages.append((block, most))
        most *= 2
    return stages[::-1]


def from_the_start(layer: int, host: Host) -> int:
    """Count a decoder layer from the beginning that may be counted from the end."""
    found = layer + host.layers if layer < 0 else layer
    if not 0 <= found < host.depth:
        raise UnsupportedSiteError(
            f"there is no decoder layer {layer}: the model has {host.layers} decoder layers, 0 to {host.layers - 1}"
        )
    return found
