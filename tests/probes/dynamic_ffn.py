"""RedundancyLens's FFN (arXiv 2501.19036): visual tokens use those channels of an FFN that a few of them activate most.

From the paper: a sample of the visual tokens goes through the gate; the channels with the largest mean activation are used by
all of them, and text uses the whole FFN. From a port of it: a tenth of the tokens, evenly spaced; a fifth of the channels;
layers from a list (of the paper's calibration, not reproduced). Ours: each image or video of a prompt has a sample of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate import Channels, Host, Method, Site, Tokens
from foveate.ops import select


@dataclass(frozen=True)
class DynamicFfn(Method):
    """In ``layers``, the FFN of visual tokens has ``ratio`` of its channels."""

    layers: tuple[int, ...] = (1, 2)
    ratio: float = 0.2
    sample: float = 0.1

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", layer, self.ratio, action="channels", part="ffn") for layer in self.layers]

    def answer(self, tokens: Tokens, site: Site) -> Channels:
        assert tokens.activations is not None
        counts = tuple(max(1, round(self.sample * n)) if n else 0 for n in tokens.counts)
        probes = select.stride(tokens.counts, counts, tokens.index.device)
        strength = tokens.activations(tokens.hidden[probes]).float().abs()
        clips = [(row, clip) for row, clip in zip(tokens.spans.row, tokens.spans.clip)]
        images = sorted(set(clips))
        of = tuple(images.index(clip) for clip in clips)
        image = torch.tensor(of, device=probes.device)[tokens.segment[probes]]
        means = torch.stack([strength[image == i].mean(0) for i in range(len(images))])
        return Channels(means.topk(max(1, round(self.ratio * means.shape[1]))).indices.sort().values, of)
