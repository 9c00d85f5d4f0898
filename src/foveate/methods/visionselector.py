"""VisionSelector: a learned score of the projected tokens, trained through a differentiable top-k that hardens step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from foveate.learning import Ramp, Relaxation, Stage
from foveate.losses import Answer, Binarise
from foveate.method import Host, Paper, Site
from foveate.ops.segments import segment_mean
from foveate.pruners import EntryPruner
from foveate.tokens import Tokens


@dataclass(frozen=True)
class VisionSelector(EntryPruner):
    """Where tokens enter the language model, keep those that all tokens of their image would attend to most by learned weights.

    From the paper: a scorer of one query and one key projection, half as wide as the language model, trained alone, with
    gradients through the frozen model; 20 % kept in training, any share after it; original position ids. From the authors'
    code: the score of token i is the mean over j of ``q_i . k_j / sqrt(h)``, without a softmax; weights begin at a standard
    deviation of 1e-4, biases at 0; in training states are multiplied by ``sigmoid(score + t)``, where t makes the gates sum to
    the budget; cross-entropy of the answer plus that of the gates with the hard choice, whose weight grows from 0.1 to 2; a
    learning rate of 5e-5. Ours: a budget for each image (the code: one for all images of a batch); the mean over j is taken of
    the tokens before the key projection, which is the same score at a cost that grows with N, not with its square; of a
    video, every frame by itself.
    """

    usual: ClassVar[float] = 0.2
    training_free: ClassVar[bool] = False
    relaxation: ClassVar[Relaxation] = Relaxation("top_k", "hidden")
    stages: ClassVar[tuple[Stage, ...]] = (Stage((Answer(), Binarise(Ramp(0.1, 2.0))), lr=5e-5),)
    paper: ClassVar[Paper] = Paper(
        "VisionSelector: End-to-End Learnable Visual Token Compression for Efficient Multimodal LLMs",
        "arXiv",
        2025,
        "2510.16598",
        "JulietChoo/VisionSelector",
    )

    def modules(self, host: Host) -> nn.ModuleDict:
        parts = {name: nn.Linear(host.width, max(1, host.width // 2)) for name in ("query", "key")}
        for part in parts.values():
            nn.init.normal_(part.weight, std=1e-4)
            nn.init.zeros_(part.bias)
        return nn.ModuleDict(parts)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        query: Tensor = self.learned["query"](tokens.hidden)
        key: Tensor = self.learned["key"](segment_mean(tokens.hidden, tokens.segment, len(tokens.counts)))
        score: Tensor = (query.float() * key.float()[tokens.segment]).sum(-1) / query.shape[-1] ** 0.5
        return score

    def flops(self, tokens: Tokens, site: Site) -> int:
        width = tokens.hidden.shape[-1]
        return 2 * width * max(1, width // 2) * (len(tokens) + len(tokens.counts))
