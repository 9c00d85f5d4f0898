"""How a method is trained: what its file declares, all of it data, and from which `foveate.training` makes a loop.

A trained method is one file, like any other, with one description from which both of its forwards follow:

* Its learned parts are `Method.modules`, made so that training begins near what the model did without them.
* **The hard forward**, for inference, is the method itself: `score` ranks tokens and the best survive, or `reduce`, or
  `answer`. It is all that `foveate.compress` knows of.
* **The soft forward**, for training, is the same `score` under a `Relaxation`: every token stays, and has a gate between 0 and
  1 in place of a yes or no, so that shapes are the stock model's and gradients reach the scores. (All tokens that a method
  may append come, too, where it gives them scores: `foveate.answers.Append`.) A method without a relaxation (one that drops by
  place, or shows the text only what has read an image) trains in its hard forward.
* ``stages`` says what trains in which order (`Stage`): the learned parts, or LoRA on the language model too; by which losses
  (`foveate.losses`), each with a weight that may change from step to step (`Ramp`); and where a target for the scores is from.
* A budget is no part of what is learned: scores rank, so ``keep`` may be another one after training.

What gates say and what the hard choice would have been is noted in every forward (`Noted`): losses read it, and the share of
the gates that the hard choice keeps, `Noted.agreement`, is logged beside the loss: what is learned in the one forward is of
use in the other only as far as they agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from foveate.answers import Append
from foveate.ops.relax import soft_top_k
from foveate.tokens import Reduction, Tokens

if TYPE_CHECKING:
    from foveate.losses import Loss
    from foveate.site import Site

#: What a stage may train: the learned ``parts`` of the method; ``lora`` on the language model (and on the tower, if asked).
Trains = Literal["parts", "lora"]


@dataclass(frozen=True)
class Ramp:
    """A number that goes from ``start`` to ``end`` in a straight line while a stage lasts.

    Attributes:
        start, end: at its first and after its last step; ``end`` None: it stays.
    """

    start: float = 1.0
    end: float | None = None

    def at(self, progress: float) -> float:
        """The number at ``progress``, from 0 to 1."""
        return self.start if self.end is None else self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Relaxation:
    """How a choice of tokens is made soft: each has a gate between 0 and 1, and all of them stay.

    Attributes:
        gate: what gates are made of scores: ``top_k``, those that sum to the budget of each image (`soft_top_k`); or
            ``sigmoid``, each from its own score, so that a loss has to see to the budget (`foveate.losses.Rate`).
        acts_on: ``hidden``: states are multiplied by gates. ``keys``: the logarithm of a gate is added to the attention logits
            of its token, in every layer from there on. A gate of 0 on keys is exactly what removal is; on hidden states it is
            not (a norm undoes the factor where a layer reads it), so that losses have to bring gates to 0 or 1.
    """

    gate: Literal["top_k", "sigmoid"] = "top_k"
    acts_on: Literal["hidden", "keys"] = "hidden"

    def gates(self, score: Tensor, tokens: Tokens, site: Site) -> Tensor:
        """``(N,)`` the gates of scores."""
        return (
            score.float().sigmoid() if self.gate == "sigmoid" else soft_top_k(score, tokens.counts, tokens.budget(site))
        )

    def apply(self, gates: Tensor, tokens: Tokens) -> Reduction:
        """Let tokens fade as their gates say, and keep all of them."""
        everything = keep_all(tokens)
        if self.acts_on == "hidden":
            return Reduction(everything.keep, everything.counts, self._faded(gates, tokens.hidden))
        return Reduction(everything.keep, everything.counts, bias=self._bias(gates))

    def append(self, gates: Tensor, answer: Append) -> Append:
        """Let new tokens fade as their gates say, and append all of them."""
        if self.acts_on == "hidden":
            return replace(answer, hidden=self._faded(gates, answer.hidden), score=None)
        return replace(answer, score=None, bias=self._bias(gates))

    @staticmethod
    def _faded(gates: Tensor, hidden: Tensor) -> Tensor:
        return hidden * gates.to(hidden.dtype)[:, None]

    @staticmethod
    def _bias(gates: Tensor) -> Tensor:
        return gates.clamp(min=torch.finfo(torch.float32).tiny).log()


@dataclass(frozen=True)
class Stage:
    """A stage of a training; all stages of a method are equally long.

    Attributes:
        losses: what is made small, their sum.
        lr: learning rate at its highest, in the paper; it rises for a few steps and then falls as a cosine to 0.
        trains: what changes; all else stays, bit for bit.
        soft: the gates act. Else tokens go on as they are, and what the method would have said is only noted.
        target: where targets of the scores come from: ``method``, which says them at its `Method.lessons`; or ``relevance``,
            what the tokens were worth to the stock model's answer (`foveate.ops.rollout`); "": no loss wants them.
    """

    losses: tuple[Loss, ...]
    lr: float
    trains: tuple[Trains, ...] = ("parts",)
    soft: bool = True
    target: Literal["", "method", "relevance"] = ""


@dataclass(frozen=True, eq=False)
class Noted:
    """What a method has said at a site in a forward, for losses.

    Attributes:
        score, gates: ``(N,)`` of all tokens there.
        hard: ``(N,)`` 1 for those that the hard choice keeps, else 0.
        counts, kept: tokens per image, and how many of them the hard choice keeps.
        budget: how many of them the method is to keep, in the mean where it says so.
    """

    score: Tensor
    gates: Tensor
    hard: Tensor
    counts: tuple[int, ...]
    kept: tuple[int, ...]
    budget: tuple[int, ...]

    @property
    def agreement(self) -> Tensor:
        """The share of all gates that is at tokens which the hard choice keeps: 1 where soft and hard are the same."""
        gates = self.gates.detach()
        return (gates * self.hard).sum() / gates.sum().clamp(min=torch.finfo(gates.dtype).tiny)


def keep_all(tokens: Tokens) -> Reduction:
    """A reduction that removes nothing."""
    return Reduction(torch.arange(len(tokens), device=tokens.index.device), tokens.counts)
