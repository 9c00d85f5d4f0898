"""RedundancyLens's FFN (arXiv 2501.19036): visual tokens use those channels of an FFN that a few of them activate most.

From the paper: a sample of the visual tokens goes through the gate; the channels with the largest mean activation are used by
all of them, and text uses the whole FFN. From a port of it: a tenth of the tokens, evenly spaced; a fifth of the channels;
layers from a list (of the paper's calibration, not reproduced). Ours: each image or video of a prompt has a sample of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate import Channels, Host, Site, Tokens
from foveate.ops import segments, select
from foveate.pruners import SingleRatio
from foveate.schedule import survivors
from foveate.units import Unit


@dataclass(frozen=True)
class DynamicFfn(SingleRatio):
    """In ``layers``, the FFN of visual tokens has ``ratio`` of its channels."""

    layers: tuple[int, ...] = (1, 2)
    sample: float = 0.1

    unit: ClassVar[Unit] = "compute"
    usual: ClassVar[float] = 0.2

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        return [Site("decoder", layer, ratio, action="channels", part="ffn") for layer in self.layers]

    def answer(self, tokens: Tokens, site: Site) -> Channels:
        assert tokens.activations is not None
        counts = tuple(survivors(n, self.sample) for n in tokens.counts)
        probes = select.stride(tokens.counts, counts, tokens.index.device)
        strength = tokens.activations(tokens.hidden[probes]).float().abs()
        clips = tokens.spans.clips
        of = tuple(clip for clip, spans in enumerate(clips) for _ in spans)
        image = torch.tensor(of, device=probes.device)[tokens.segment[probes]]
        means = segments.segment_mean(strength, image, len(clips))
        return Channels(means.topk(max(1, round(site.keep * means.shape[1]))).indices.sort().values, of)
