"""VoCo-LLaMA: tokens behind an image that alone read it; the text reads them, and they can be kept for other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.answers import Answer as SaidAnswer
from foveate.answers import Append, Sight
from foveate.learning import Stage
from foveate.losses import Answer
from foveate.method import Host, Paper, Site
from foveate.ops.segments import segment_ids, segment_mean, within
from foveate.pruners import SingleRatio
from foveate.tokens import Reduction, Tokens
from foveate.units import Unit

IMAGE, VOCO, TEXT = range(3)
RANKS = 64  # embeddings: a longer row of new tokens begins with the first one again


@dataclass(frozen=True, kw_only=True)
class VoCoLLaMA(SingleRatio):
    """Behind every image come a few learned tokens, which alone see it; of the image only these stay in the cache.

    From the paper: VoCo tokens stand between image and text, and text sees them and not the image; what the language model
    makes of them, in every layer, is kept and serves any number of prompts (`foveate.Handle.encode`), so that the image is
    read once; of a video each frame by itself. From the authors' code: that is one mask on top of the model's own, the answer's
    loss is all there is, and two tokens stand for 576. Ours: image and VoCo tokens see nothing but themselves, or what is kept
    would depend on what stood before the image; text before an image stays visible to the text behind it (the code hides it);
    new tokens have the position of the image's last one, so that all others keep theirs; each begins as the mean of the image,
    to which an embedding of its rank is added; LoRA in place of full tuning, at LLaVA-1.5's learning rate for it. What is kept
    are the inputs of the layers, from which each makes keys and values at the image's place in the prompt.

    Attributes:
        ratio: VoCo tokens as a share of the image's tokens, one at least; by default 2 of 576.
    """

    unit: ClassVar[Unit] = "cache"
    usual: ClassVar[float] = 2 / 576
    training_free: ClassVar[bool] = False
    stores: ClassVar[Literal["features", "appended"]] = "appended"
    stages: ClassVar[tuple[Stage, ...]] = (Stage((Answer(),), lr=2e-4, trains=("parts", "lora")),)
    paper: ClassVar[Paper] = Paper(
        "VoCo-LLaMA: Towards Vision Compression with Large Language Models",
        "CVPR",
        2025,
        "2406.12275",
        "Yxxxb/VoCo-LLaMA",
    )

    def modules(self, host: Host) -> nn.ModuleDict:
        voco = nn.Embedding(RANKS, host.width)
        nn.init.normal_(voco.weight, std=0.02)
        return nn.ModuleDict({"voco": voco})

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.output(0.0)] if 0 in (self.keep, self.ratio) else super().sites(host)

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        if ratio == 1:
            return []
        return [Site.append(keep=ratio), Site.sight(), *(Site.cache(layer, ratio) for layer in host.growing_caches)]

    def answer(self, tokens: Tokens, site: Site) -> SaidAnswer:
        if site.action == "append":
            counts = tokens.budget(site)
            return Append(self.rows(tokens, counts), counts)
        if site.action == "sight":
            sees = torch.ones(3, 3, dtype=torch.bool)
            sees[TEXT, IMAGE] = False
            return Sight(torch.where(tokens.appended, VOCO, IMAGE), sees, apart=True)
        return super().answer(tokens, site)

    def rows(self, tokens: Tokens, counts: Sequence[int]) -> Tensor:
        """``(M, C)`` so many new tokens for each image."""
        device = tokens.hidden.device
        mean = segment_mean(tokens.hidden, tokens.segment, len(tokens.counts))
        added: Tensor = self.learned["voco"](within(counts, device) % RANKS)
        return mean[segment_ids(counts, device)] + added

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask(tokens.appended)
