"""A step of the engine: which tokens it has, which positions they are at, and how many of them each reduced layer has.

There is one object for all of that. The runner's seam makes it and ends it (`runner.py`), the model notes in it which features
arrive (`Attached.arrive`), and the layers read it (`Inner`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.serving.plan import Plan
from foveate.serving.vllm.columns import Columns
from foveate.serving.vllm.prompt import Ints, Placed, Prompt


class Batch:
    """The requests of a step, most of which are those of the step before; what is the same in every step after their prompts.

    Attributes:
        requests: as the runner has them.
        prompts: of each.
        length: ``(R,)`` of each prompt.
        end: ``(R,)`` first place after its last image.
        missing: ``(R,)`` features that are missing before that.
        dropped: ``(G, R)`` tokens dropped before it, before each of the plan's layers.
    """

    def __init__(self, requests: list[Any], prompts: list[Prompt]) -> None:
        self.requests, self.prompts = requests, prompts
        self.length: Ints = np.array([request.num_prompt_tokens for request in requests], dtype=np.int64)
        self.end: Ints = np.array([prompt.ends[-1] if len(prompt.ends) else 0 for prompt in prompts], dtype=np.int64)
        self.missing: Ints = np.array([prompt.missing[-1] for prompt in prompts], dtype=np.int64)
        self.dropped: Ints = np.stack([prompt.dropped[:, -1] for prompt in prompts], axis=1)

    def still(self, requests: list[Any]) -> bool:
        """Tell whether these are the requests; one that goes on as a session may have got images."""
        known = zip(self.requests, self.prompts, requests)
        same = all(mine is theirs and len(prompt.placed) == len(theirs.mm_features) for mine, prompt, theirs in known)
        return same and len(self.requests) == len(requests)


class Step:
    """One step of the engine: of each request a piece of its prompt, or what it has just generated.

    Args:
        plan: of the method.
        batch: the requests.
        start, count: ``(R,)`` where each piece begins in its request, and its tokens.

    Attributes:
        early: requests whose piece begins before the end of their last image.
        within: images and videos with features in this step, ``(request, image or video, features)`` in the order of tokens.
        before, after: for each of the plan's layers ``(R,)`` tokens of each request from there on, before and after this step.
        slots: attention layer -> where its tokens are kept, if it has fewer of them.
        arrived: columns of the features of this step, and their places in it; None: there are none.
    """

    def __init__(self, plan: Plan, batch: Batch, start: Ints, count: Ints) -> None:
        self.plan, self.batch, self.start, self.count = plan, batch, start, count
        self.early: list[int] = (start < batch.end).nonzero()[0].tolist()
        self.within: list[tuple[int, Placed, int]] = [
            (i, *each) for i, prompt, a, b in self._pieces() for each in prompt.within(a, b)
        ]
        self.before, self.after = ([at - gone for gone in self._dropped(at)] for at in (start, start + count))
        self.slots: dict[str, Tensor] = {}
        self.arrived: tuple[Columns, Tensor] | None = None

    def _pieces(self) -> list[tuple[int, Prompt, int, int]]:
        ends = self.start + self.count
        return [(i, self.batch.prompts[i], int(self.start[i]), int(ends[i])) for i in self.early]

    @property
    def planned(self) -> list[Ints]:
        """For each of the plan's layers ``(R,)`` tokens of each request in this step from there on."""
        return [after - before for before, after in zip(self.before, self.after)]

    @property
    def generated(self) -> Ints:
        """``(R,)`` tokens of each that come after its prompt."""
        beyond: Ints = np.maximum(self.start + self.count - self.batch.length, 0)
        return beyond

    def _dropped(self, places: Ints) -> Ints:
        """``(G, R)`` tokens dropped before each reduced layer, of the first ``places (R,)`` of each request."""
        dropped: Ints = self.batch.dropped.copy()
        for i in self.early:
            prompt = self.batch.prompts[i]
            dropped[:, i] = prompt.dropped[:, prompt.ended(int(places[i]))]
        return dropped

    def pieces(self, depth: int, padded: int, device: torch.device) -> Pieces | None:
        """Return what the layers from the plan's layer ``depth`` on have of this step, in ``padded`` slots; None: all of it."""
        before, after = self.before[depth], self.after[depth]
        if np.array_equal(before, self.start) and np.array_equal(after, self.start + self.count):
            return None
        return Pieces(before, after, 0 if self.within else padded, device)

    def place(self, positions: Tensor) -> None:
        """Give every token the position that it would have without a method, in place.

        Args:
            positions: ``(P,)`` or, M-RoPE, ``(3, P)``; the first of them are those of this step.
        """
        if positions.dim() == 1:
            missing, first = np.repeat(self.batch.missing, self.count), self.count.cumsum() - self.count
            for i, prompt, a, b in self._pieces():
                missing[first[i] : first[i] + b - a] = prompt.missing_before(a, b)
            positions[: len(missing)] += _to(missing, positions)
        if not self.within:
            return
        assert self.arrived is not None, "whoever embeds the tokens of a step notes its features"
        columns, places = self.arrived
        places, sizes = places.to(positions.device), [len(placed.full) for _, placed, _ in self.within]
        starts = np.repeat(np.cumsum([0, *sizes])[:-1], [n for _, _, n in self.within])
        index = _to(starts, positions) + columns.row.to(positions)
        if positions.dim() == 1:
            positions[places] = _to(np.concatenate([placed.full for _, placed, _ in self.within]), positions)[index]
            return
        steps = torch.cat([self.batch.prompts[i].steps(placed) for i, placed, _ in self.within], dim=1)
        positions[:, places] += steps.to(positions)[:, index]


def _to(numbers: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.device, like.dtype, non_blocking=True)


class Pieces:
    """The pieces of requests that a reduced layer has, on the device, where groups of layers share them.

    Args:
        before, after: ``(R,)`` tokens of each request in this layer before this step and after it.
        padded: slots to fill up with -1.

    Attributes:
        starts, ends: ``(R + 1,)`` where pieces begin and ``(R,)`` what they end at, int32, on the host; ``there`` are both.
        request, place: ``(T,)`` of each token, where it is in the layer's cache.
    """

    def __init__(self, before: Ints, after: Ints, padded: int, device: torch.device) -> None:
        self.lengths, self.padded = after - before, padded
        starts = np.concatenate([[0], self.lengths.cumsum()])
        self.starts, self.ends = (torch.from_numpy(x.astype(np.int32)) for x in (starts, after))
        self.there = tuple(x.to(device, non_blocking=True) for x in (self.starts, self.ends))
        which = np.repeat(np.arange(len(after)), self.lengths)
        place = np.arange(len(which)) + np.repeat(before - starts[:-1], self.lengths)
        self.request, self.place = (torch.from_numpy(x).to(device, non_blocking=True) for x in (which, place))

    def slots(self, blocks: Tensor, size: int) -> Tensor:
        """Slots of its tokens, then -1, int64; ``blocks (R, B)`` are those of each request, of ``size`` tokens each."""
        slot = blocks[self.request, self.place // size].long() * size + self.place % size
        return torch.nn.functional.pad(slot, (0, max(self.padded - len(slot), 0)), value=-1)
