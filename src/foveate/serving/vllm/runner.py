"""The seam in vLLM's model runner: what a step holds, the positions of its tokens, and the metadata of reduced layers.

Three methods of the runner are wrapped, and do what they did unless the model carries a method. Metadata of reduced layers is
made by the engine's own builders from lengths of ours, so it is that of whatever attention backend there is.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        """Whether these are the requests; one that goes on as a session may have got images."""
        known = zip(self.requests, self.prompts, requests)
        same = all(mine is theirs and len(prompt.placed) == len(theirs.mm_features) for mine, prompt, theirs in known)
        return same and len(self.requests) == len(requests)

    @classmethod
    def of(cls, runner: Any, attached: Any) -> Batch:
        """That of the runner's next step."""
        requests = [runner.requests[name] for name in runner.input_batch.req_ids]
        if attached.batch is None or not attached.batch.still(requests):
            attached.batch = cls(requests, [attached.prompt(request) for request in requests])
        found: Batch = attached.batch
        return found


class Step:
    """The tokens of one step of the engine: of each request a piece of its prompt, or what it has just generated.

    Attributes:
        batch: the requests.
        start, count: ``(R,)`` where each piece begins in its request, and its tokens.
        early: requests whose piece begins before the end of their last image.
        within: images and videos with features in this step, ``(request, image or video, features)`` in the order of tokens.
    """

    def __init__(self, runner: Any, attached: Any, scheduled: dict[str, int]) -> None:
        self.attached, self.batch, names = attached, Batch.of(runner, attached), runner.input_batch.req_ids
        self.count: Ints = np.array([scheduled[name] for name in names], dtype=np.int64)
        self.start: Ints = runner.input_batch.num_computed_tokens_cpu[: len(names)].astype(np.int64)
        self.early: list[int] = (self.start < self.batch.end).nonzero()[0].tolist()
        self.within: list[tuple[int, Placed, int]] = [
            (i, *each) for i, prompt, a, b in self._pieces() for each in prompt.within(a, b)
        ]

    def _pieces(self) -> list[tuple[int, Prompt, int, int]]:
        ends = self.start + self.count
        return [(i, self.batch.prompts[i], int(self.start[i]), int(ends[i])) for i in self.early]

    @property
    def after(self) -> Ints:
        """``(R,)`` tokens of each that come after its prompt."""
        after: Ints = np.maximum(self.start + self.count - self.batch.length, 0)
        return after

    # -- positions --------------------------------------------------------------------------------------------------

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
        columns, places = self.attached.arrived
        places, sizes = places.to(positions.device), [len(placed.full) for _, placed, _ in self.within]
        starts = np.repeat(np.cumsum([0, *sizes])[:-1], [n for _, _, n in self.within])
        index = _to(starts, positions) + columns.row.to(positions)
        if positions.dim() == 1:
            positions[places] = _to(np.concatenate([placed.full for _, placed, _ in self.within]), positions)[index]
            return
        steps = torch.cat([self.batch.prompts[i].steps(placed) for i, placed, _ in self.within], dim=1)
        positions[:, places] += steps.to(positions)[:, index]

    # -- reduced layers ---------------------------------------------------------------------------------------------

    def deepen(self, runner: Any, metadata: dict[str, Any], slots: dict[str, Tensor]) -> None:
        """Replace what the layers from each reduced one on are told: fewer tokens, in compact slots of the same blocks."""
        inner, padded = self.attached.inner, len(next(iter(slots.values())))
        inner.step, inner.counts = (self if self.within else None), []
        starts, ends = (self._dropped(at) for at in (self.start, self.start + self.count))
        for g, names in enumerate(inner.names):
            before, after = self.start - starts[g], self.start + self.count - ends[g]
            inner.counts.append(after - before)
            if not starts[g].any() and not ends[g].any():
                continue
            for gid, groups in enumerate(runner.attn_groups):
                for group in groups:
                    mine = [name for name in names if name in group.layer_names]
                    if not mine:
                        continue
                    slot = _slots_of(
                        runner.input_batch.block_table[gid], before, after, padded if not self.within else 0
                    )
                    common = _common(runner, gid, before, after, slot)
                    made = group.build_metadata(common)
                    for name in mine:
                        metadata[name], slots[name] = made, slot

    def _dropped(self, places: Ints) -> Ints:
        """``(G, R)`` tokens dropped before each reduced layer, of the first ``places (R,)`` of each request."""
        dropped: Ints = self.batch.dropped.copy()
        for i in self.early:
            prompt = self.batch.prompts[i]
            dropped[:, i] = prompt.dropped[:, prompt.ended(int(places[i]))]
        return dropped


def _to(numbers: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.device, like.dtype, non_blocking=True)


def _slots_of(table: Any, before: Ints, after: Ints, padded: int) -> Tensor:
    """Slots of the places from ``before`` to ``after`` of each request, and -1 up to ``padded``."""
    lengths = after - before
    which = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(lengths.sum()) + np.repeat(before - (lengths.cumsum() - lengths), lengths)
    blocks = table.get_device_tensor(len(lengths))
    request, block, inside = (
        _to(x, blocks).long() for x in (which, place // table.block_size, place % table.block_size)
    )
    slot = blocks[request, block].long() * table.block_size + inside
    return torch.nn.functional.pad(slot, (0, max(padded - len(slot), 0)), value=-1)


def _common(runner: Any, gid: int, before: Ints, after: Ints, slot: Tensor) -> Any:
    """vLLM's description of a batch, of these pieces."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    lengths, table = after - before, runner.input_batch.block_table[gid].get_device_tensor(len(after))
    starts = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))
    ends = torch.from_numpy(after.astype(np.int32))
    return CommonAttentionMetadata(
        query_start_loc=starts.to(table.device, non_blocking=True),
        query_start_loc_cpu=starts,
        seq_lens=ends.to(table.device, non_blocking=True),
        seq_lens_cpu_upper_bound=ends,
        num_reqs=len(after),
        num_actual_tokens=int(lengths.sum()),
        max_query_len=int(lengths.max()),
        max_seq_len=int(after.max()),
        block_table_tensor=table,
        slot_mapping=slot,
        causal=True,
    )


# -- the seam -----------------------------------------------------------------------------------------------------------


def watch_runners() -> None:
    """Wrap the runner's methods, once in a process."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Runner

    if hasattr(Runner, "foveate_step"):
        return
    Runner.foveate_step = Runner.foveate_slots = None
    slots, build, forward = Runner._get_slot_mappings, Runner._build_attention_metadata, Runner._model_forward

    @functools.wraps(slots)
    def keep_slots(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = slots(self, *args, **kwargs)
        self.foveate_slots = found[1]
        return found

    @functools.wraps(build)
    def build_ours(self: Any, *args: Any, num_scheduled_tokens: Any = None, **kwargs: Any) -> Any:
        found = build(self, *args, num_scheduled_tokens=num_scheduled_tokens, **kwargs)
        attached, self.foveate_step = getattr(self.get_model(), "foveate", None), None
        if attached is not None and num_scheduled_tokens:
            self.foveate_step = step = Step(self, attached, num_scheduled_tokens)
            if attached.plan.inner:
                step.deepen(self, found[0], self.foveate_slots)
        return found

    @functools.wraps(forward)
    def place_and_forward(self: Any, input_ids: Any = None, positions: Any = None, *args: Any, **kwargs: Any) -> Any:
        step, self.foveate_step = self.foveate_step, None
        if step is not None:
            step.place(positions)
        return forward(self, input_ids, positions, *args, **kwargs)

    Runner._get_slot_mappings, Runner._build_attention_metadata = keep_slots, build_ours
    Runner._model_forward = place_and_forward
