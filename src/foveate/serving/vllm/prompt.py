"""Where the tokens of a request are: in the prompt as it would be without a method, as it is, and in each reduced layer.

All of it follows from the grids of the images and from the plan, so it is known on the host, of every request, at any time: no
step has to remember anything, and a request that was preempted is simply computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.serving.plan import Item, Plan

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placed:
    """An image or video in a prompt. Its features are in one run.

    Attributes:
        item: its grids.
        feature: what vLLM says of it.
        start: first place of its features in the prompt as it is, ``full`` in the prompt without a method.
        size: features in the prompt as it is.
    """

    item: Item
    feature: Any
    start: int
    full: int
    size: int

    @property
    def end(self) -> int:
        """The first place after it."""
        return self.start + self.size


class Prompt:
    """A request's prompt.

    Args:
        plan: of the method.
        items: ``(item, vLLM's feature, its first place, features)`` of each image or video, by place.

    Attributes:
        placed: the images and videos, by place.
        ends: ``(I,)`` where each ends.
        missing: ``(I + 1,)`` features that are missing before that end, cumulative from 0.
        dropped: ``(G, I + 1)`` the same of tokens that are dropped before each of the plan's layers.
    """

    def __init__(self, plan: Plan, items: Sequence[tuple[Item, Any, int, int]]) -> None:
        self.placed: list[Placed] = []
        missing, dropped = [0], [np.zeros(len(plan.layers), dtype=np.int64)]
        for item, feature, start, size in items:
            self.placed.append(Placed(item, feature, start, start + missing[-1], size))
            missing.append(missing[-1] + item.features - size)
            left = np.array([sum(counts) for counts in plan.inner_counts(item)], dtype=np.int64)
            dropped.append(dropped[-1] + sum(plan.entry_counts(item)) - left)
        self.ends = np.array([each.end for each in self.placed], dtype=np.int64)
        self.missing = np.array(missing, dtype=np.int64)
        self.dropped = np.stack(dropped, axis=1)

    def ended(self, place: int) -> int:
        """How many images and videos end at ``place`` or before."""
        return int(np.searchsorted(self.ends, place, side="right"))

    def within(self, start: int, end: int) -> list[tuple[Placed, int]]:
        """Images and videos with features among the places from ``start`` to ``end``, and how many."""
        found = ((each, min(end, each.end) - max(start, each.start)) for each in self.placed)
        return [(each, n) for each, n in found if n > 0]

    def missing_before(self, start: int, end: int) -> Ints:
        """``(end - start,)`` features that are missing before each place, those of its own image apart."""
        return self.missing[np.searchsorted(self.ends, np.arange(start, end), side="right")]
