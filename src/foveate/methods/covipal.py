"""CoViPAL (reconstruction): a small classifier that reads image and question ranks the tokens before the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedSiteError
from foveate.learning import Relaxation, Stage
from foveate.losses import Answer, Binarise, Imitate, Rate
from foveate.method import Host, Paper, Site
from foveate.ops.segments import segment_ids, segment_mean
from foveate.pruners import EntryPruner, from_the_start
from foveate.signal import Signal
from foveate.tokens import Tokens

HIDDEN = 256


@dataclass(frozen=True)
class CoViPAL(EntryPruner):
    """Before the language model keep the tokens that a learned classifier takes for worth it (a reconstruction).

    From the abstract: a plug-and-play module of few parameters reads visual and text tokens and scores the visual ones, the
    best go on, and the model stays frozen; two stages of training, the first guided by the attention that tokens receive in a
    layer deeper than the cut, the second end to end. From a third party's trainer: in the second stage the logarithm of the
    probability to be kept is added to the attention logits of visual keys. Ours, as neither the text nor the code could be
    read: the classifier, a perceptron that sees a token, the mean of its image and the mean of its prompt's text; the
    guidance layer, half-way down, of which text rows and heads are averaged; cross-entropy with the best tokens by that
    attention, then the answer's, the divergence from the full model and the squared distance from the budget; learning rates;
    half of the tokens by default; original position ids; one cut, before the first layer (the paper: also before deeper ones).

    Attributes:
        guidance: decoder layer whose attention guides the first stage; by default the middle one. It is for training alone.
    """

    guidance: int | None = None

    signals: ClassVar[tuple[Signal | str, ...]] = ("text",)
    training_free: ClassVar[bool] = False
    relaxation: ClassVar[Relaxation] = Relaxation("sigmoid", "keys")
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage((Binarise(to="target"),), lr=1e-3, soft=False, target="method"),
        Stage((Answer(), Imitate(), Rate()), lr=1e-4),
    )
    paper: ClassVar[Paper] = Paper(
        "CoViPAL: Layer-wise Contextualized Visual Token Pruning for Large Vision-Language Models",
        "EMNLP Findings",
        2025,
        "2508.17243",
        "tyxqc/CoViPAL",
    )

    def modules(self, host: Host) -> nn.ModuleDict:
        readers = {name: nn.Linear(host.width, HIDDEN) for name in ("token", "image", "text")}
        return nn.ModuleDict({**readers, "head": nn.Linear(HIDDEN, 1)})

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        parts, n = self.learned, len(tokens.text_counts)
        image = segment_mean(tokens.hidden, tokens.segment, len(tokens.counts))
        text = segment_mean(tokens.text, segment_ids(tokens.text_counts, tokens.text.device), n)
        known = parts["image"](image)[tokens.segment] + parts["text"](text)[tokens.sample]
        score: Tensor = parts["head"](torch.nn.functional.gelu(parts["token"](tokens.hidden) + known))
        return score[:, 0].float()

    def lessons(self, host: Host) -> Sequence[Site]:
        layer = from_the_start((host.layers - 1) // 2 if self.guidance is None else self.guidance, host)
        if layer > host.layers - 2:
            raise UnsupportedSiteError(
                f"covipal: guidance={self.guidance} leaves no decoder layer after it: give 0 to {host.layers - 2}"
            )
        return [Site.decoder(layer + 1, signals=(Signal("received", layer, rows="text"),))]

    def target(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.signal(site.asked[0])

    def flops(self, tokens: Tokens, site: Site) -> int:
        rows = len(tokens) + len(tokens.counts) + len(tokens.text_counts)
        return 2 * HIDDEN * (tokens.hidden.shape[-1] * rows + len(tokens))
