"""From what was heard to numbers: one `Line` per line of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from foveate.lab.evaluation import statistics
from foveate.lab.evaluation.asking import Cost
from foveate.lab.evaluation.fidelity.forced import Heard
from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.results import Spent
from foveate.lab.evaluation.statistics import Share


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
        costs = [each.cost for each in heard if each.cost is not None]
        return cls(
            entry.label,
            entry.budget,
            entry.method.to_dict(),
            statistics.average(kls(heard)),
            statistics.average(np.array([each.kl[0] for each in heard])),
            statistics.average(np.array([fmean(each.agree) for each in heard])),
            statistics.wilson(sum(each.agree[0] for each in heard), len(heard)),
            statistics.wilson(sum(all(each.agree) for each in heard), len(heard)),
            Spent.of(Cost.total((cost, 1) for cost in costs)),
        )


def kls(heard: Sequence[Heard]) -> statistics.Floats:
    """Mean KL over an answer's positions, of each prompt."""
    return np.array([fmean(each.kl) for each in heard])
