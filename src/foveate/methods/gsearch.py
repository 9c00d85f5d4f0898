"""G-Search: tokens leave before nearly every layer, as a searched schedule or a sigmoid says (a reconstruction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, Spelling, sigmoid
from foveate.signal import Signal
from foveate.tokens import Tokens


@dataclass(frozen=True)
class GSearch(DecoderPruner):
    """Before each layer keep the tokens to which the layer before paid most attention, fewer with depth (a reconstruction).

    From the paper, at second hand (no code is public): the ranking of visual tokens by attention is nearly the same in all
    layers but the first, so what is dropped is not missed later; each layer ranks by the attention of the one before; G-Search
    finds, from shallow to deep, the smallest share of each layer that loses nothing; P-Sigmoid, for a given budget, takes the
    shares from a logistic curve over depth, and searches its steepness.
    Ours: `foveate tune` is the search, by divergence from the stock model in place of accuracy: ``--max-kl`` is G-Search,
    ``--budget`` is P-Sigmoid, and both write a ``schedule``. Without one the shares are P-Sigmoid's at ``keep``, by default
    0.5, with a steepness of 12 (the paper tunes it for each model). Attention is that of the last text token, or of all words
    behind the image (``rows="text"``), in the mean over heads; steps of less than 2 % wait for the next layer; original
    position ids.

    Attributes:
        schedule: a searched one, in place of the sigmoid.
        steepness: of the sigmoid over the whole depth: 0 is flat, more than 30 a cliff; by default 12.
        rows: whose attention ranks: that of the ``last`` token of the prompt, the default, or of all its ``text``.
    """

    schedule: Spelling | None = None
    steepness: float | None = None
    rows: Literal["last", "text"] = "last"

    signals: ClassVar[tuple[Signal | str, ...]] = ("last_row",)
    usual_keep: ClassVar[float] = 0.5
    where: ClassVar[tuple[str, ...]] = (*DecoderPruner.where, "steepness")
    paper: ClassVar[Paper] = Paper(
        "Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction",
        "CVPR",
        2025,
        "2412.00556",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steepness is not None and self.schedule is not None:
            raise ConfigError(f"{self.name()}: give either `schedule` or `steepness`, which is that of the sigmoid")
        if self.steepness is not None and not 0 <= self.steepness <= 1000:
            raise ConfigError(f"steepness={self.steepness}: give 0 (a flat curve) to 1000 (a cliff)")

    def usual(self, host: Host) -> Schedule:
        keep = self.usual_keep if self.keep is None else self.keep
        steepness = 12.0 if self.steepness is None else self.steepness
        low, high = -40.0, steepness + 40.0  # offsets with which nothing and everything is left
        for _ in range(40):
            offset = (low + high) / 2
            mean = sum(self._curve(host, steepness, offset)) / host.depth
            low, high = (offset, high) if mean < keep else (low, offset)
        first = min(self.first(host), host.layers - 1)
        found = Schedule.along(self._curve(host, steepness, high)[: host.layers], first)
        return found if found.stages else Schedule(((first, 1.0),))

    def _curve(self, host: Host, steepness: float, offset: float) -> list[float]:
        """Tell the share of each layer: 1 before the first cut, in layers without keys of their own that of the last one."""
        curve = sigmoid(host.layers, steepness, offset)
        first = min(self.first(host), host.layers - 1)
        return [1.0] * first + curve[first:] + curve[-1:] * (host.depth - host.layers)

    def sites(self, host: Host) -> Sequence[Site]:
        found = super().sites(host)
        return (
            found if self.rows == "last" else [replace(site, signals=site.signals and ("text_rows",)) for site in found]
        )

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.last_row.float().mean(-1) if self.rows == "last" else tokens.text_rows.float().sum(1)
