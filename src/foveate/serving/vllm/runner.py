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
        """Tell whether these are the requests; one that goes on as a session may have got images."""
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
            pieces = Pieces(before, after, 0 if self.within else padded)
            for gid, groups in enumerate(runner.attn_groups):
                for group in groups:
                    mine = [name for name in group.layer_names if name in names]
                    if not mine:
                        continue
                    common = _common(runner, gid, pieces)
                    made = group.build_metadata(common)
                    for name in mine:
                        metadata[name], slots[name] = made, common.slot_mapping

    def _dropped(self, places: Ints) -> Ints:
        """``(G, R)`` tokens dropped before each reduced layer, of the first ``places (R,)`` of each request."""
        dropped: Ints = self.batch.dropped.copy()
        for i in self.early:
            prompt = self.batch.prompts[i]
            dropped[:, i] = prompt.dropped[:, prompt.ended(int(places[i]))]
        return dropped


def _to(numbers: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.device, like.dtype, non_blocking=True)


class Pieces:
    """The pieces of requests that a reduced layer has, and what of it is on the device; groups of layers share it.

    Args:
        before, after: ``(R,)`` tokens of each request in this layer before this step and after it.
        padded: slots to fill up with -1.
    """

    def __init__(self, before: Ints, after: Ints, padded: int) -> None:
        self.before, self.after, self.padded, self.lengths = before, after, padded, after - before
        self.starts = torch.from_numpy(np.concatenate([[0], self.lengths.cumsum()]).astype(np.int32))
        self.ends = torch.from_numpy(after.astype(np.int32))
        self._lengths: tuple[Tensor, Tensor] | None = None
        self._places: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``(R + 1,)`` where pieces begin and ``(R,)`` what they end at, int32."""
        if self._lengths is None:
            self._lengths = self.starts.to(device, non_blocking=True), self.ends.to(device, non_blocking=True)
        return self._lengths

    def slots(self, blocks: Tensor, size: int) -> Tensor:
        """Slots of its tokens, then -1, int64.

        Args:
            blocks: ``(R, B)`` of each request, each of ``size`` tokens.
        """
        if size not in self._places:
            which = np.repeat(np.arange(len(self.lengths)), self.lengths)
            first = self.before - (self.lengths.cumsum() - self.lengths)
            place = np.arange(len(which)) + np.repeat(first, self.lengths)
            request, block, inside = (
                torch.from_numpy(x).to(blocks.device, non_blocking=True) for x in (which, place // size, place % size)
            )
            self._places[size] = request, block, inside
        request, block, inside = self._places[size]
        slot = blocks[request, block].long() * size + inside
        return torch.nn.functional.pad(slot, (0, max(self.padded - len(slot), 0)), value=-1)


def _common(runner: Any, gid: int, pieces: Pieces) -> Any:
    """vLLM's description of a batch, of these pieces, for a group of layers."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    table = runner.input_batch.block_table[gid]
    blocks = table.get_device_tensor(len(pieces.after))
    starts, ends = pieces.on(blocks.device)
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=pieces.starts,
        seq_lens=ends,
        seq_lens_cpu_upper_bound=pieces.ends,
        num_reqs=len(pieces.after),
        num_actual_tokens=int(pieces.lengths.sum()),
        max_query_len=int(pieces.lengths.max()),
        max_seq_len=int(pieces.after.max()),
        block_table_tensor=blocks,
        slot_mapping=pieces.slots(blocks, table.block_size),
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
