"""Fidelity: from what was heard to numbers, one `Line` per line of the report, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import numpy as np

from foveate.lab.checks import COUNTED
from foveate.lab.evaluation import statistics
from foveate.lab.evaluation.forced import Heard
from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.report import Content, Report, Table, percent, short
from foveate.lab.evaluation.request import Fidelity
from foveate.lab.evaluation.results import Result, Spent
from foveate.lab.evaluation.statistics import Share

NUMBERS = ("tokens", "FLOPs", "KV", "KL", "95 % CI", "first KL", "top-1", "first top-1", "same answer")
FEW = 20  # prompts


@dataclass(frozen=True)
class Line:
    """A method's result.

    Attributes:
        label, budget, method: of the entry; ``method`` as plain data.
        kl: KL(stock || method) in nats, the mean over the answer's positions and over prompts; ``first_kl``: of the first
            token.
        top1: how often both find the same token likeliest; ``first_top1``: of the first token.
        same: greedy answers that are the stock model's, token by token.
        spent: what it cost, prompts and forced answers.
    """

    label: str
    budget: float | None
    method: dict[str, Any]
    kl: Share
    first_kl: Share
    top1: Share
    first_top1: Share
    same: Share
    spent: Spent

    @classmethod
    def of(cls, entry: Entry, heard: Sequence[Heard]) -> Line:
        assert entry.method is not None
        return cls(
            entry.label,
            entry.budget,
            entry.method.to_dict(),
            statistics.average(kls(heard)),
            statistics.average(np.array([each.kl[0] for each in heard])),
            statistics.average(np.array([fmean(each.agree) for each in heard])),
            statistics.wilson(sum(each.agree[0] for each in heard), len(heard)),
            statistics.wilson(sum(all(each.agree) for each in heard), len(heard)),
            Spent.over(each.cost for each in heard),
        )


@dataclass(frozen=True)
class Faithful(Result[Fidelity, Line]):
    """What came out.

    Attributes:
        prompts: how many.
        length: mean tokens of the stock model's answers.
    """

    words: ClassVar[str] = "foveate eval fidelity"

    prompts: int
    length: float

    def facts(self) -> dict[str, Any]:
        by = None if self.request.as_is else self.request.by
        return {"by": by, "count": self.prompts, "answer_tokens": self.length}

    def files(self) -> Mapping[str, Content]:
        return {}

    def report(self) -> Report:
        rows = [(line.label, short(line.budget), *cells(line)) for line in ordered(self.rows)]
        answers = f"answers of {self.length:.1f} tokens on average, at most {self.request.new_tokens}"
        summary = f"{self.prompts} prompts, without labels; {answers if self.rows else 'nothing could be measured'}."
        table = Table(("method", "budget", *NUMBERS), rows)
        return Report(f"{self.model}: fidelity", self.command, summary, (table,), tuple(self._remarks()))

    def _remarks(self) -> list[str]:
        spent = ", every method as its options say." if self.request.as_is else f". Budget: {COUNTED[self.request.by]}."
        lines = [
            "KL: KL(stock || method) of the next token in nats, the mean over the positions of the stock model's greedy "
            "answer, which both are made to say; over prompts the mean with a 95 % bootstrap interval. First: of the answer's "
            "first token.",
            "Top-1: both find the same token likeliest. Same answer: greedy answers that are the stock model's, token by "
            "token.",
            f"tokens, FLOPs, KV: prompt and answer, over those of the stock model{spent}",
            "Near the stock model is not right: where it errs, so does what is faithful to it.",
        ]
        if self.prompts == 1:
            lines.append("One prompt is too few for an interval (-), and nothing can be concluded: give more.")
        elif self.prompts < FEW:
            lines.append(f"{self.prompts} prompts say little: below {FEW}, intervals are too narrow; give more.")
        return [*lines, *self.left_out()]


def kls(heard: Sequence[Heard]) -> statistics.Floats:
    """Mean KL over an answer's positions, of each prompt."""
    return np.array([fmean(each.kl) for each in heard])


def ordered(lines: Sequence[Line]) -> list[Line]:
    """From the largest budget to the smallest, what stays nearest to the stock model first."""
    return sorted(lines, key=lambda line: (line.budget is not None, -(line.budget or 0), line.kl.value))


def cells(line: Line) -> tuple[str, ...]:
    """The `NUMBERS`."""
    return (
        *map(percent, (line.spent.tokens, line.spent.flops, line.spent.kv)),
        nats(line.kl.value),
        interval(line.kl),
        nats(line.first_kl.value),
        *(percent(share.value) for share in (line.top1, line.first_top1, line.same)),
    )


def nats(value: float) -> str:
    """Three digits, from a millionth on."""
    return "0" if abs(value) < 1e-6 else f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def interval(share: Share) -> str:
    """In nats; of a single prompt there is none, and of values that are all the same."""
    return "-" if share.low is None or share.high is None else f"{nats(share.low)} to {nats(share.high)}"
