"""What FlashAttention is told of reduced layers. Its kernels want a GPU; what prepares their arguments does not.

Batches are those of a real engine, on a CPU; the builder is vLLM's own. Each field is compared with one that is written out
request by request and token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from served import ask, engine
from test_engine import FAMILY, many
from test_refusals import configure
from vllm.config import CUDAGraphMode
from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadata, FlashAttentionMetadataBuilder

from foveate import ADSC, LUVC
from foveate.serving.vllm import runner as ours
from foveate.serving.vllm.configure import _for_inner
from foveate.serving.vllm.settings import settings_of

METHODS = {"luvc": LUVC(), "adsc twice": ADSC(layers=(1, 3))}


@dataclass
class Batch:
    """A step as one group of layers sees it: what our runner says, and what is known of its requests."""

    common: Any
    made: FlashAttentionMetadata
    requests: list[list[Any]]  # tokens before and after this step in these layers, blocks
    padded: int  # tokens that the rest of the step has, or 0 where features arrive


@pytest.fixture(scope="module", params=METHODS)
def batches(request: pytest.FixtureRequest) -> list[Batch]:
    """Of prompts in chunks, decoding, and both in a step."""
    found: list[Batch] = []
    deepen, common = ours._deepen, ours._common
    asked: list[Any] = []

    def keep(runner: Any, step: Any, names: Any, metadata: Any, slots: Any) -> None:
        asked.clear()
        padded = 0 if step.within else len(next(iter(slots.values())))
        deepen(runner, step, names, metadata, slots)
        slow = {gid: _by_hand(runner, step, gid) for gid in range(len(runner.kv_cache_config.kv_cache_groups))}
        reduced = {gid: each for gid, each in slow.items() if any(gone for *_, gone in each)}
        assert sorted(gid for gid, _ in asked) == sorted(reduced)
        for gid, said in asked:
            each, made = reduced[gid], _builder(runner).build(0, said)
            made.block_table = made.block_table.clone()  # a view: the next step writes into it
            found.append(Batch(said, made, [known for *known, _ in each], padded))

    def note(runner: Any, gid: int, *args: Any) -> Any:
        asked.append((gid, common(runner, gid, *args)))
        return asked[-1][1]

    patch = pytest.MonkeyPatch()
    patch.setattr(ours, "_deepen", keep)
    patch.setattr(ours, "_common", note)
    try:
        with engine(FAMILY, METHODS[request.param], max_num_batched_tokens=96, **SMALL) as llm:
            ask(llm, many(12, shortest=40))
    finally:
        patch.undo()
    return found


SMALL: dict[str, Any] = dict(
    mm_processor_kwargs={"max_pixels": 64 * 64}, limit_mm_per_prompt={"image": 2, "video": 0}, block_size=32
)


def _builder(runner: Any) -> FlashAttentionMetadataBuilder:
    spec = runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    return FlashAttentionMetadataBuilder(spec, [], runner.vllm_config, torch.device("cpu"))


def _by_hand(runner: Any, step: Any, gid: int) -> list[tuple[int, int, list[int], int]]:
    """Of each request: tokens before and after this step in a layer, its blocks, and tokens that are gone."""
    (name,) = runner.kv_cache_config.kv_cache_groups[gid].layer_names  # the model is so small that each has a group
    layer = int(name.split("layers.")[1].split(".")[0])
    found, depth = [], sum(at <= layer for at in step.plan.layers)
    for i, name in enumerate(runner.input_batch.req_ids):
        request, start = runner.requests[name], int(step.start[i])
        end, ends, attached = start + int(step.count[i]), [], runner.get_model().foveate
        for feature in request.mm_features:
            item = attached.engine.shape(attached.config, feature.modality, feature.data.get_data(), 0)
            counts = [attached.plan.entry_counts(item), *attached.plan.inner_counts(item)]
            ends.append((feature.mm_position.offset + feature.mm_position.length, sum(counts[0]) - sum(counts[depth])))
        before, after = (sum(n for last, n in ends if last <= place) for place in (start, end))
        found.append((start - before, end - after, list(request.block_ids[gid]), after))
    return found


def test_there_are_steps_of_every_kind(batches: list[Batch]) -> None:
    kinds = {
        (any(b - a == 1 for a, b, _ in each.requests), any(b - a > 1 for a, b, _ in each.requests)) for each in batches
    }
    assert kinds >= {(True, False), (True, True), (False, True)}
    assert {bool(each.padded) for each in batches} == {True, False}


def test_lengths(batches: list[Batch]) -> None:
    for each in batches:
        lengths = [b - a for a, b, _ in each.requests]
        starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        for made in (each.made, each.common):
            assert made.query_start_loc.dtype == made.seq_lens.dtype == torch.int32
            assert made.query_start_loc.tolist() == starts
            assert made.seq_lens.tolist() == [b for _, b, _ in each.requests]
            assert (made.max_query_len, made.max_seq_len) == (max(lengths), max(b for _, b, _ in each.requests))
            assert made.num_actual_tokens == sum(lengths)
            assert made.causal is True
        assert each.common.num_reqs == len(lengths)
        assert each.common.query_start_loc_cpu.tolist() == starts


def test_slots(batches: list[Batch]) -> None:
    for each in batches:
        size = SMALL["block_size"]
        slots = [blocks[p // size] * size + p % size for a, b, blocks in each.requests for p in range(a, b)]
        slots += [-1] * (each.padded - len(slots))
        assert each.made.slot_mapping.dtype == torch.int64
        assert each.made.slot_mapping.tolist() == slots
        table = each.made.block_table
        assert (table.dtype, table.stride(-1)) == (torch.int32, 1)
        for row, (_, b, blocks) in zip(table.tolist(), each.requests, strict=True):
            used = -(-b // size)
            assert row[:used] == blocks[:used]


def test_a_step_of_single_tokens_is_uniform(batches: list[Batch]) -> None:
    """As decoding is: one token of each request, in every layer, so that FlashAttention takes the kernel for it."""
    decoding = [each for each in batches if all(b - a == 1 for a, b, _ in each.requests)]
    assert decoding
    for each in decoding:
        assert each.made.max_query_len == 1
        assert each.made.num_actual_tokens == len(each.requests)
        assert len(each.made.slot_mapping) == each.padded >= len(each.requests)


GRAPHS = {
    CUDAGraphMode.FULL_AND_PIECEWISE: CUDAGraphMode.PIECEWISE,
    CUDAGraphMode.PIECEWISE: CUDAGraphMode.PIECEWISE,
    CUDAGraphMode.FULL: CUDAGraphMode.NONE,
    CUDAGraphMode.FULL_DECODE_ONLY: CUDAGraphMode.NONE,
}


@pytest.mark.parametrize("mode", GRAPHS)
def test_no_graph_holds_attention(mode: CUDAGraphMode) -> None:
    """It would go on with the lengths that it was captured with; pieces between attention layers may be graphs."""
    config = configure(LUVC().to_dict())
    config.compilation_config.cudagraph_mode = mode
    _for_inner(config, settings_of(config.model_config).plan)
    assert config.compilation_config.cudagraph_mode == GRAPHS[mode]
