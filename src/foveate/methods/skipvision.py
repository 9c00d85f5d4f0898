"""Skip-Vision: most visual tokens skip the FFN of every layer and leave the cache after the prompt; a learned summary stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from foveate.answers import Answer as SaidAnswer
from foveate.answers import Append
from foveate.learning import Stage
from foveate.losses import Answer
from foveate.method import Host, Paper, Site
from foveate.ops.segments import normalise, segment_sum
from foveate.pruners import SingleRatio
from foveate.tokens import Tokens
from foveate.units import Unit


@dataclass(frozen=True, kw_only=True)
class SkipVision(SingleRatio):
    """Behind every image comes a learned summary; it and the image's last tokens go through FFNs, the others only attend.

    From the paper: skipped tokens share the norms, projections and causal attention of all others, at their own positions, and
    pass on the residual in place of the FFN; when the prompt has ended, their keys and values leave the cache; the model is
    tuned with the skipping in place, by the answer's loss alone. From the authors' code: retained are the last token of a
    group and summaries, each the mean of its tokens weighed by the softmax of one linear score. Ours: one summary for each
    image, which begins as the plain mean; a quarter is retained by default, as the published savings in FLOPs are three
    quarters; LoRA in place of full tuning, at LLaVA-1.5's learning rate for it; the removal from the cache, which is in the
    paper's words and not in the code that was read. Left out: the merge before the projector, as any method that acts earlier
    can be added (``ToMe() + SkipVision()``).

    Attributes:
        ratio: share of each image's tokens and summary that go through the FFNs; by default 0.25.
        free: skipped tokens leave the cache after the prompt.
    """

    free: bool = True

    unit: ClassVar[Unit] = "compute"
    usual: ClassVar[float] = 0.25
    training_free: ClassVar[bool] = False
    stages: ClassVar[tuple[Stage, ...]] = (Stage((Answer(),), lr=2e-4, trains=("parts", "lora")),)
    paper: ClassVar[Paper] = Paper(
        "Skip-Vision: Efficient and Scalable Acceleration of Vision-Language Models via Adaptive Token Skipping",
        "ICCV",
        2025,
        "2503.21817",
        "zwl666666/Skip-Vision",
    )

    def modules(self, host: Host) -> nn.ModuleDict:
        score = nn.Linear(host.width, 1)
        nn.init.zeros_(score.weight)
        return nn.ModuleDict({"score": score})

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        skips = [Site.skip(layer, "ffn", ratio) for layer in range(host.layers)]
        if ratio == 1:
            return skips
        caches = [Site.cache(layer, ratio) for layer in host.growing_caches] if self.free else []
        return [Site.append(), *skips, *caches]

    def answer(self, tokens: Tokens, site: Site) -> SaidAnswer:
        if site.action != "append":
            return super().answer(tokens, site)
        weight = normalise(self.learned["score"](tokens.hidden)[:, 0], tokens.counts, "softmax")
        summary = segment_sum(weight[:, None] * tokens.hidden.float(), tokens.segment, len(tokens.counts))
        return Append(summary.to(tokens.hidden.dtype)[:, None])

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.index.float() + tokens.appended * 2.0**24

    def flops(self, tokens: Tokens, site: Site) -> int:
        return 2 * len(tokens) * tokens.hidden.shape[-1] if site.action == "append" else 0
