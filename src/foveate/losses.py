"""What training makes small. A loss is a frozen dataclass with a weight; the stages of a method name those that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.learning import Noted, Ramp
from foveate.ops.segments import normalise, segment_ids, segment_mean, segment_sum
from foveate.ops.select import top_k

IGNORED = -100  # a label that is none


@dataclass(frozen=True, eq=False)
class Step:
    """One forward in training, as losses see it.

    Attributes:
        loss: that of the next token, as the model itself computes it.
        logits: ``(B, L, V)``.
        labels: ``(B, L)``, `IGNORED` where nothing is to be learned.
        notes: what the method has said, site after site; none where the batch has no image.
        target: ``(N,)`` what the scores of the first of them should have been, if the stage says where from.
        teacher: ``(B, L, V)`` logits of the stock model, without the method and without LoRA, if a loss asks for them.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor
    notes: Sequence[Noted]
    target: Tensor | None
    teacher: Tensor | None


@dataclass(frozen=True)
class Loss:
    """A number that training makes small.

    Attributes:
        weight: by which it is multiplied; it may change while a stage lasts.
    """

    weight: Ramp = field(default_factory=Ramp)

    #: it wants `Step.teacher`, one more forward
    asks_teacher: ClassVar[bool] = False

    def __call__(self, step: Step) -> Tensor:
        """Its value, of a mean over whatever it looks at."""
        raise NotImplementedError(f"{type(self).__name__} must say its value")

    @classmethod
    def name(cls) -> str:
        """Say its name in logs."""
        return cls.__name__.lower()


@dataclass(frozen=True)
class Answer(Loss):
    """Cross-entropy of what the assistant says."""

    def __call__(self, step: Step) -> Tensor:
        return step.loss


@dataclass(frozen=True)
class Imitate(Loss):
    """Divergence from what the stock model, which sees all tokens, would say next, wherever the assistant speaks."""

    asks_teacher: ClassVar[bool] = True

    def __call__(self, step: Step) -> Tensor:
        assert step.teacher is not None
        says = step.labels[:, 1:] != IGNORED
        own, stock = (logits[:, :-1][says].float().log_softmax(-1) for logits in (step.logits, step.teacher))
        return torch.nn.functional.kl_div(own, stock, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Binarise(Loss):
    """Cross-entropy of gates with a yes or no for each token.

    Attributes:
        to: those that the hard choice keeps of the ``score``, which drives gates to 0 and 1; or as many of the highest
            ``target``, from which a scorer learns.
    """

    to: Literal["score", "target"] = "score"

    def __call__(self, step: Step) -> Tensor:
        found = []
        for note in step.notes:
            yes = note.hard
            if self.to == "target" and step.target is not None:
                yes = torch.zeros_like(yes).index_fill(0, top_k(step.target, note.counts, note.kept), 1.0)
            gates = note.gates.float().clamp(1e-6, 1 - 1e-6)
            found.append(-(yes * gates.log() + (1 - yes) * (1 - gates).log()).mean())
        return mean_of(found, step.logits)


@dataclass(frozen=True)
class Rate(Loss):
    """Square of what the mean gate of an image is off its budget.

    Attributes:
        of: ``image``, each of them; ``batch``, all of its images together, so that one may have more than another.
    """

    of: Literal["image", "batch"] = "image"

    def __call__(self, step: Step) -> Tensor:
        found = []
        for note in step.notes:
            counts, budget, gates = note.counts, note.budget, note.gates.float()
            if self.of == "batch":
                counts, budget = (sum(counts),), (sum(budget),)
            means = segment_mean(gates, segment_ids(counts, gates.device), len(counts))
            wanted = torch.tensor([k / max(1, n) for k, n in zip(budget, counts)]).to(means)
            found.append((means - wanted).square().mean())
        return mean_of(found, step.logits)


@dataclass(frozen=True)
class Distil(Loss):
    """Divergence of the scores of an image, as a distribution over its tokens, from the target."""

    def __call__(self, step: Step) -> Tensor:
        if not step.notes or step.target is None:
            return mean_of([], step.logits)
        note = step.notes[0]
        wanted, tiny = normalise(step.target, note.counts, "sum"), torch.finfo(torch.float32).tiny
        said = normalise(note.score, note.counts, "softmax").clamp(min=tiny).log()
        each = wanted * (wanted.clamp(min=tiny).log() - said)
        return segment_sum(each, segment_ids(note.counts, each.device), len(note.counts)).mean()


def mean_of(values: Sequence[Tensor], like: Tensor) -> Tensor:
    """The mean of some numbers; 0 where there are none, as in a batch without images."""
    return torch.stack(list(values)).mean() if values else like.new_zeros((), dtype=torch.float32)
