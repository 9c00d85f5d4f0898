"""DMLLM: visual tokens leave at late denoising steps, little by little, or skip layers, in models that write in such steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.method import Host, Paper, Site, Unit
from foveate.pruners import SingleRatio, from_the_start
from foveate.signal import Signal
from foveate.tokens import Tokens

#: shares of the denoising steps after which tokens leave
WHEN = {"late": (0.75,), "progressive": (0.25, 0.5, 0.75)}


@dataclass(frozen=True, kw_only=True)
class DMLLM(SingleRatio):
    """Drop the visual tokens that get the least attention late in denoising or at several steps, or let them skip layers.

    From the paper (abstract): models trained as diffusion models recover in late steps what pruning has lost, so tokens
    leave late or progressively; models made of autoregressive ones do not, and skip layers; attention tells which tokens.
    From the authors' code: late, one cut in the 48th step that leaves a quarter, by the attention of all tokens in layer 2, for
    that step and all that follow (LLaDA-V); skipping, no visual token from layer 15 of 28 on (LaViDa-Dream).
    Ours: the late step is three quarters of the model's, as the code does not say of how many its step is; the cut is before
    layer 3, not in the middle of layer 2; the shares of a progressive cut are equal, at each quarter of the steps; attention
    is the mean over heads after the softmax (the code: before); positions are kept (the code renumbers). In a model whose
    steps read a cache, each layer's cache is cut by what the answer looked at there in the step before.

    FLOPs: of a step that runs ``n`` tokens of the prompt and ``L`` of the answer, the matrix products on ``n + L``; of one that
    reads ``n`` from a cache, those on ``L``, and ``n`` counts in the attention alone: less is saved there.

    Attributes:
        how: ``late``, ``progressive`` or ``skip``; by default ``late`` where every step runs the prompt again, as in models
            trained as diffusion models, and ``skip`` in all others, also those that write word by word, and with ``last``.
        ratio: share of an image's tokens that is left in the end; by default 0.25, and 0 of ``skip``.
        steps: denoising steps at which tokens leave, an equal share of those present at each; by default see above.
        layer: decoder layer before which they leave in such a step (3), or from which on they skip (15/28 of the depth).
        last: of ``skip``, the layer before which they take part again; by default they do not.
    """

    how: Literal["late", "progressive", "skip"] | None = None
    steps: tuple[int, ...] | None = None
    layer: int | None = None
    last: int | None = None

    unit: ClassVar[Unit] = "decode"
    usual: ClassVar[float] = 0.25
    where: ClassVar[tuple[str, ...]] = ("how", "steps", "layer", "last")
    how_much: ClassVar[tuple[str, ...]] = ("ratio",)
    signals: ClassVar[tuple[Signal | str, ...]] = ("received",)
    paper: ClassVar[Paper] = Paper(
        "A Comprehensive Study on Visual Token Redundancy for Discrete Diffusion-based Multimodal Large Language Models",
        "CVPR Findings",
        2026,
        "2511.15098",
        "Yrdal3910/dMLLM-Visual-Token-Redundancy-Analysis",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = "steps" if self.how == "skip" else "last"
        if self.how is not None and getattr(self, wrong) is not None:
            raise ConfigError(f"dmllm: {wrong} says nothing where how={self.how!r}: leave it out")
        if self.steps is not None and sorted({*self.steps}) != [*self.steps]:
            raise ConfigError(f"dmllm: steps={self.steps}: give them in ascending order, each once")
        if self.steps is not None and self.last is not None:
            raise ConfigError("dmllm: steps say when tokens leave, and last where they skip layers: give one of them")

    def schedule_of(self, host: Host) -> str:
        """Choose the schedule for a model like ``host``."""
        if self.how is not None:
            return self.how
        late = self.last is None and host.steps and not host.reads_cache
        return "late" if self.steps is not None or late else "skip"

    def sites(self, host: Host) -> Sequence[Site]:
        if self.keep is None and self.ratio is None and self.schedule_of(host) == "skip":
            return self.at(0.0, host)
        return super().sites(host)

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        how = self.schedule_of(host)
        if how == "skip":
            return self._skipping(ratio, host)
        if not host.steps:
            raise UnsupportedSiteError(
                f"dmllm: how={how!r} says at which denoising steps tokens leave, and {host.family!r} writes its answer word by "
                "word: use how='skip' there"
            )
        steps = self.steps or sorted({max(1, round(host.steps * share)) for share in WHEN[how]})
        each = ratio ** (1 / len(steps))
        if host.reads_cache:
            if self.layer is not None:
                raise ConfigError(f"dmllm: layer={self.layer} says nothing where steps read a cache: leave it out")
            layers = host.growing_caches
            return [Site.cache(layer, each, step=n, signals=self.signals) for n in steps for layer in layers]
        before = min(3, host.layers - 1) if self.layer is None else self.layer
        return [Site.decoder(before, each, step=n, signals=self.signals) for n in steps]

    def _skipping(self, ratio: float, host: Host) -> Sequence[Site]:
        first = min(round(host.layers * 15 / 28), host.layers - 1)
        first = first if self.layer is None else from_the_start(self.layer, host)
        signals = self.signals if 0 < ratio < 1 else ()
        if self.last is None:
            return [Site.decoder(first, ratio, signals=signals)]
        last = from_the_start(self.last, host)
        if last <= first:
            raise ConfigError(
                f"dmllm: last={self.last}: tokens skip from layer {first} on, so give a layer after that one"
            )
        return [Site.decoder(first, ratio, action="park", signals=signals), Site.decoder(last, action="restore")]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.received if site.signals else torch.zeros_like(tokens.sizes)  # all stay, or all go
