"""One batch of questions through the stock path, with a method attached or without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from foveate.cost import Report
from foveate.handle import compress
from foveate.lab.evaluation.batches import Batch
from foveate.lab.evaluation.bounds import asked
from foveate.method import Method

if TYPE_CHECKING:
    from foveate.lab.evaluation.subject import Subject


@dataclass(frozen=True)
class Cost:
    """What a question cost, the mean over its batch; over what it costs the stock model.

    Attributes:
        tokens: visual tokens per decoder layer.
        flops: of the whole call, the tower and the method's own work included.
        kv: bytes of the KV cache.
        full_tokens, full_flops, full_kv: of the stock model.
    """

    tokens: float
    flops: float
    kv: float
    full_tokens: float
    full_flops: float
    full_kv: float

    def of(self, by: str) -> tuple[float, float]:
        """What was spent of ``tokens``, ``flops`` or ``kv``, and what the stock model spends."""
        return getattr(self, by), getattr(self, f"full_{by}")

    def share(self, by: str) -> float:
        """What was spent over what the stock model spends; 1 where that is nothing."""
        now, full = self.of(by)
        return now / full if full else 1.0

    @classmethod
    def total(cls, costs: Iterable[tuple[Cost, float]]) -> Cost:
        """Of several together, each counted by its weight, so that an image counts by what it costs."""
        weighted = list(costs)
        return cls(*(sum(getattr(cost, field.name) * weight for cost, weight in weighted) for field in fields(cls)))

    @classmethod
    def mean(cls, report: Report, questions: int) -> Cost:
        """That of a call that asked so many."""
        return cls(
            report.mean_tokens,
            sum(report.flops.values()) / questions,
            report.kv_bytes / questions,
            report.visual_tokens / questions,
            sum(report.full_flops.values()) / questions,
            report.full_kv_bytes / questions,
        )


def answer(subject: Subject, batch: Batch, method: Method | None) -> tuple[list[str], Cost | None]:
    """One generated word for each question, and what it cost; nobody measures the stock model, which costs all of it."""
    if method is None:
        return _generate(subject, batch), None
    with asked(batch.evidence), compress(subject.model, method) as handle:
        words = _generate(subject, batch)
        return words, Cost.mean(handle.report(), len(batch.samples))


@torch.inference_mode()
def _generate(subject: Subject, batch: Batch) -> list[str]:
    output = subject.model.generate(**batch.inputs, max_new_tokens=1, do_sample=False)
    new = output[:, batch.inputs["input_ids"].shape[1] :]
    words = subject.preparation.processor.batch_decode(new, skip_special_tokens=True)
    return [str(word).strip() for word in words]
