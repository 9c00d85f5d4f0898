"""The seam in vLLM's model runner: where a `Step` begins and ends, and the metadata of layers that have fewer tokens.

Two methods of the runner are wrapped, and do what they did unless the model carries a method. Metadata of reduced layers is
made by the engine's own builders from lengths of ours, so it is that of whatever attention backend there is.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import Tensor

from foveate.serving.vllm.step import Pieces, Step


def watch_runners() -> None:
    """Wrap the runner's methods, once in a process."""
    from vllm.forward_context import get_forward_context
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Runner

    build, forward = Runner._build_attention_metadata, Runner._model_forward
    if hasattr(build, "foveate"):
        return

    @functools.wraps(build)
    def begin(
        self: Any, *args: Any, num_scheduled_tokens: Any = None, slot_mappings: Any = None, **options: Any
    ) -> Any:
        options |= dict(num_scheduled_tokens=num_scheduled_tokens, slot_mappings=slot_mappings)
        found, attached = build(self, *args, **options), getattr(self.get_model(), "foveate", None)
        if attached is not None:  # runs of the engine for itself (warming up, capturing graphs) schedule nothing
            attached.step = _step(self, attached, num_scheduled_tokens) if num_scheduled_tokens else None
            if attached.step is not None and attached.plan.layers:
                _deepen(self, attached.step, attached.inner.names, found[0], slot_mappings)
        return found

    @functools.wraps(forward)
    def run(self: Any, input_ids: Any = None, positions: Any = None, *args: Any, **options: Any) -> Any:
        attached = getattr(self.get_model(), "foveate", None)
        if attached is None or attached.step is None:
            return forward(self, input_ids, positions, *args, **options)
        attached.step.place(positions)
        get_forward_context().slot_mapping.update(attached.step.slots)
        try:
            return forward(self, input_ids, positions, *args, **options)
        finally:
            attached.step = None

    begin.foveate = True  # type: ignore[attr-defined]
    Runner._build_attention_metadata, Runner._model_forward = begin, run


def _step(runner: Any, attached: Any, scheduled: dict[str, int]) -> Step:
    """Return the step that the runner has laid out."""
    names = runner.input_batch.req_ids
    start = runner.input_batch.num_computed_tokens_cpu[: len(names)].astype(np.int64)
    batch = attached.batch_of([runner.requests[name] for name in names])
    return Step(attached.plan, batch, start, np.array([scheduled[name] for name in names], dtype=np.int64))


def _deepen(
    runner: Any, step: Step, names: list[frozenset[str]], metadata: dict[str, Any], slots: dict[int, Tensor]
) -> None:
    """Replace what the layers from each reduced one on are told: fewer tokens, in compact slots of the same blocks."""
    padded = len(next(iter(slots.values())))
    for depth, reduced in enumerate(names):
        pieces = step.pieces(depth, padded, runner.device)
        if pieces is None:
            continue
        for gid, groups in enumerate(runner.attn_groups):
            for group in groups:
                mine = [name for name in group.layer_names if name in reduced]
                if mine:
                    common = _common(runner, gid, pieces)
                    metadata.update(dict.fromkeys(mine, group.build_metadata(common)))
                    step.slots.update(dict.fromkeys(mine, common.slot_mapping))


def _common(runner: Any, gid: int, pieces: Pieces) -> Any:
    """vLLM's description of a batch, of these pieces, for a group of layers."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    table = runner.input_batch.block_table[gid]
    blocks = table.get_device_tensor(len(pieces.ends))
    return CommonAttentionMetadata(
        query_start_loc=pieces.there[0],
        query_start_loc_cpu=pieces.starts,
        seq_lens=pieces.there[1],
        seq_lens_cpu_upper_bound=pieces.ends,
        num_reqs=len(pieces.ends),
        num_actual_tokens=int(pieces.lengths.sum()),
        max_query_len=int(pieces.lengths.max()),
        max_seq_len=int(pieces.ends.max()),
        block_table_tensor=blocks,
        slot_mapping=pieces.slots(blocks, table.block_size),
        causal=True,
    )
