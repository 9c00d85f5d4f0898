"""Where the tokens of a request are: in the prompt as it would be without a method, as it is, and in each reduced layer.

All of it follows from the grids of the images and from the plan, so it is known on the host, of every request, at any time: no
step has to remember anything, and a request that was preempted is simply computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.serving.budgets import SERVERS, Choice
from foveate.serving.plan import Item, Plan
from foveate.serving.vllm.engine import Engine

Ints = NDArray[np.int64]
#: field of an image or video: ``(L,)`` int64, the ids of the text in its range without a method, -1: a feature
INSIDE = "foveate_inside"
#: another one, for host and model: ``(2,)`` fp64, the budget that its prompt asks for and the number of the profile, -1: none
CHOICE = "foveate_choice"


@dataclass(frozen=True, eq=False)
class Placed:
    """An image or video in a prompt. Between the frames of a video there may be text.

    Attributes:
        item: its grids.
        feature: what vLLM says of it.
        places: ``(K,)`` of its features in the prompt as it is, ascending.
        full: ``(R,)`` of the features that it has without a method, in the prompt without a method, ascending.
        begin: first place of its range in the prompt without a method; there may be text before its features.
    """

    item: Item
    feature: Any
    places: Ints
    full: Ints
    begin: int


class Prompt:
    """A request's prompt.

    Args:
        plan: of the method.
        items: ``(item, vLLM's feature, inside)`` of each image or video, by place; ``inside (L,)`` says of its range without a
            method which places are features, and which are text.

    Attributes:
        placed: the images and videos, by place.
        ends: ``(I,)`` first place after the range of each.
        dropped: ``(G, I + 1)`` tokens that are dropped before each of the plan's layers before that end, cumulative from 0.
        gaps: ``(M,)`` places before which features are missing, ascending.
        missing: ``(M + 1,)`` how many are missing before that place, cumulative from 0.
        mrope: M-RoPE positions ``(3, L)`` in the prompt without a method, and what is added to a later place, if the model
            has such and there are images.
    """

    mrope: tuple[Tensor, int] | None = None

    def __init__(self, plan: Plan, items: Sequence[tuple[Item, Any, NDArray[np.bool_]]]) -> None:
        self.placed: list[Placed] = []
        gaps, numbers, missing, dropped = [_NONE], [_NONE], 0, [np.zeros(len(plan.layers), dtype=np.int64)]
        for item, feature, inside in items:
            counts, begin = plan.entry_counts(item), feature.mm_position.offset + missing
            gone = np.ones(item.features, dtype=np.bool_)
            gone[item.kept(counts)] = False
            full = inside.nonzero()[0] + begin
            at = full - missing - (gone.cumsum() - gone)  # where it is in the prompt as it is, or would be
            self.placed.append(Placed(item, feature, at[~gone], full, begin))
            gap, number = np.unique(at[gone], return_counts=True)
            gaps.append(gap)
            numbers.append(number)
            missing += int(number.sum())
            left = np.array([sum(each) for each in plan.inner_counts(item)], dtype=np.int64)
            dropped.append(dropped[-1] + sum(counts) - left)
        ranges = [each.feature.mm_position for each in self.placed]
        self.ends = np.array([each.offset + each.length for each in ranges], dtype=np.int64)
        self.dropped = np.stack(dropped, axis=1)
        self.gaps = np.concatenate(gaps)
        self.missing = np.concatenate([np.zeros(1, dtype=np.int64), np.concatenate(numbers).cumsum()])

    @classmethod
    def read(cls, plan: Plan, engine: Engine, config: Any, features: Sequence[Any]) -> Prompt:
        """Of a request.

        Args:
            plan, engine, config: of the method, of the model, and vLLM's config of it.
            features: what vLLM says of the request's images and videos.
        """
        found = []
        for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
            data = feature.data.get_data()
            item = engine.shape(config, feature.modality, data, int((data[INSIDE] < 0).sum()))
            inside = inside_of(item, data[INSIDE]).numpy()
            found.append((replace(item, choice=choice_of(data, plan)), feature, inside))
        return cls(plan, found)

    def steps(self, placed: Placed) -> Tensor:
        """``(3, R)`` M-RoPE positions of all features of an image, counted from the first one's."""
        assert self.mrope is not None
        own = self.mrope[0][:, torch.from_numpy(placed.full)]
        return own - own[:, :1]

    def ended(self, place: int) -> int:
        """Tell how many images and videos end at ``place`` or before."""
        return int(np.searchsorted(self.ends, place, side="right"))

    def within(self, start: int, end: int) -> list[tuple[Placed, int]]:
        """Images and videos with features among the places from ``start`` to ``end``, and how many."""
        if not len(self.ends) or start >= self.ends[-1]:
            return []
        found = ((each, int(np.diff(np.searchsorted(each.places, [start, end]))[0])) for each in self.placed)
        return [(each, n) for each, n in found if n > 0]

    def missing_before(self, start: int, end: int) -> Ints:
        """``(end - start,)`` features that are missing before each place."""
        if not len(self.gaps) or start >= self.gaps[-1]:
            return np.full(end - start, self.missing[-1])
        return self.missing[np.searchsorted(self.gaps, np.arange(start, end), side="right")]


def inside_of(item: Item, ids: Tensor) -> Tensor:
    """Tell which places of the range ``ids (L,)`` of an item, as in `INSIDE`, are its features: ``(L,)`` bool.

    Text between the lines of an image is among them where the item says so (`Item.gaps`): how much of a line stays is known no
    sooner than its features, and text that were in the prompt would stand among the wrong ones.
    """
    inside = ids < 0
    return inside if int(inside.sum()) == item.features else torch.ones_like(inside)


def chosen(choice: Choice, plan: Plan) -> Tensor:
    """Return what a prompt asks for as a tensor, for `choice_of`."""
    profile = list(plan.profiles).index(choice.profile) if choice.profile else -1
    return torch.tensor([-1.0 if choice.keep is None else choice.keep, profile], dtype=torch.float64)


def choice_of(data: Mapping[str, Any], plan: Plan) -> Choice:
    """Return what the prompt of an image asks for, which comes with it."""
    if CHOICE not in data:
        return SERVERS
    keep, profile = data[CHOICE].flatten().tolist()
    return Choice(None if keep < 0 else keep, "" if profile < 0 else list(plan.profiles)[int(profile)])


_NONE: Ints = np.zeros(0, dtype=np.int64)
