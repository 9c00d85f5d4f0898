"""RelevanceNet (reconstruction): a small net predicts from the first layer's attention what a token is worth to the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.learning import Relaxation, Stage
from foveate.losses import Distil
from foveate.method import Host, Paper, Site
from foveate.ops.segments import segment_mean
from foveate.pruners import EntryPruner
from foveate.signal import Signal
from foveate.site import Place
from foveate.tokens import Tokens

CHANNELS = (2, 16, 16, 1)  # what a map consists of, and what each convolution makes of it


@dataclass(frozen=True)
class RelevanceNet(EntryPruner):
    """Before the first layer keep the tokens that a learned net takes for relevant by its attention (a reconstruction).

    From the abstract: explaining what a frozen model said gives each visual token a relevance for the answer, and dropping the
    least relevant ones at the input costs little; a light convolutional net learns to make that relevance of the attention of
    the first layer, trained by itself, with no gradient through the model; half of the tokens go. Ours, as neither the text
    nor code could be read: relevance is Chefer et al.'s roll-out of attention times its gradient, from the rows that said the
    answer; the net reads two maps of an image, the mean and the largest attention that the question's tokens pay to each token
    (head mean), over their own mean, and has three 3x3 convolutions, of 16 channels; the divergence of its softmax from the
    relevance as a distribution is made small; original position ids; of a video, every frame by itself.
    """

    at: ClassVar[Place] = "decoder"
    signals: ClassVar[tuple[Signal | str, ...]] = ("next_rows", "text_place")
    training_free: ClassVar[bool] = False
    relaxation: ClassVar[Relaxation] = Relaxation("top_k", "hidden")
    stages: ClassVar[tuple[Stage, ...]] = (Stage((Distil(),), lr=1e-3, soft=False, target="relevance"),)
    paper: ClassVar[Paper] = Paper(
        "Task-Related Token Compression in Multimodal Large Language Models from an Explainability Perspective",
        "ICLR",
        2026,
        "2506.01097",
    )

    def modules(self, host: Host) -> nn.ModuleDict:
        sizes = zip(CHANNELS, CHANNELS[1:])
        return nn.ModuleDict({f"conv{i}": nn.Conv2d(a, b, 3, padding=1) for i, (a, b) in enumerate(sizes)})

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        asks = (tokens.text_place >= 0)[tokens.sample]  # (N, R), as a sample may have fewer rows than others
        paid = torch.nn.functional.pad(tokens.next_rows * asks, (0, 1))
        maps = torch.stack([paid.sum(1) / asks.sum(1).clamp(min=1), paid.amax(1)], 1)
        mean = segment_mean(maps, tokens.segment, len(tokens.counts))[tokens.segment]
        maps = maps / mean.clamp(min=torch.finfo(mean.dtype).tiny)
        sides = torch.tensor(tokens.spans.shape).to(tokens.index.device, non_blocking=True)
        y, x = tokens.index // sides[tokens.segment, 1], tokens.index % sides[tokens.segment, 1]
        place = (tokens.segment, y, x)
        height, width = self._canvas(tokens)
        grid = maps.new_zeros(len(tokens.counts), height, width, 2).index_put(place, maps).permute(0, 3, 1, 2)
        there = tokens.hidden.new_zeros(len(tokens.counts), height, width)
        there = there.index_put(place, there.new_ones(()))[:, None]
        for name, conv in self.learned.items():
            grid = conv(grid.to(there.dtype)) * there  # beyond an image is nothing, as where it is alone
            grid = grid if name == f"conv{len(CHANNELS) - 2}" else torch.nn.functional.gelu(grid)
        return grid[:, 0][place].float()

    @staticmethod
    def _canvas(tokens: Tokens) -> tuple[int, int]:
        """The grid that holds that of each image."""
        height, width = (max(sides, default=1) for sides in zip(*tokens.spans.shape))
        return height, width

    def flops(self, tokens: Tokens, site: Site) -> int:
        height, width = self._canvas(tokens)
        return 2 * 9 * sum(a * b for a, b in zip(CHANNELS, CHANNELS[1:])) * len(tokens.counts) * height * width
