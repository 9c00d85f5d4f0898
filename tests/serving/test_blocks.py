"""Layers that hold fewer tokens hold fewer blocks."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from served import ask, engine, expected, request, requests
from vllm import SamplingParams

from foveate import ADSC, VTW, Method, Random
from foveate.serving.vllm.cache import MOST, group_size

FAMILY = "qwen2_5_vl"
LAYERS, BLOCK = 6, 32


def blocks_of(llm: Any, wanted: dict[str, Any]) -> tuple[int, list[int], int]:
    """Length of a prompt, blocks of each group once it is in the cache, and blocks that are left when it is answered."""
    from vllm.inputs import TextPrompt

    inside = llm.llm_engine
    cache = inside.engine_core.engine_core.scheduler.kv_cache_manager
    before = cache.block_pool.get_num_free_blocks()
    inside.add_request("one", TextPrompt(**wanted), SamplingParams(max_tokens=4, ignore_eos=True, temperature=0))
    held: list[int] = []
    length = 0
    while inside.has_unfinished_requests():
        inside.step()
        groups = [
            max(each.req_to_blocks.values(), key=len, default=[]) for each in cache.coordinator.single_type_managers
        ]
        held = held or [len(blocks) for blocks in groups]
        length = length or next(
            (r.num_prompt_tokens for r in inside.engine_core.engine_core.scheduler.requests.values()), 0
        )
    return length, held, cache.block_pool.get_num_free_blocks() - before


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (ADSC(layers=(1, 3), keep=0.5), [256, 140, 140, 77, 77, 77]),
        (VTW(layer=2), [256, 256, 0, 0, 0, 0]),
        (Random(keep=0.5) + VTW(layer=4), [128, 128, 128, 128, 0, 0]),
    ],
    ids=["adsc", "vtw", "random + vtw"],
)
def test_blocks_of_a_request(method: Method, left: list[int]) -> None:
    """As many as the tokens that each layer has; the image alone is of 256, and half of them are left to a layer on average."""
    wanted = request(FAMILY, "the cat@the dog", (128, 128))
    with engine(FAMILY, method, block_size=BLOCK) as llm:
        length, held, lost = blocks_of(llm, wanted)
    size = LAYERS // len(held)
    text = length - left[0]
    assert held == [-(-(text + left[i]) // BLOCK) for i in range(0, LAYERS, size)]
    assert lost == 0
    assert sum(held) * size < LAYERS * -(-(text + left[0]) // BLOCK)


def test_more_requests_at_once() -> None:
    """In the same memory, so that fewer of them, or none, have to be computed again."""
    wanted = [request(FAMILY, f"the cat@{'the dog ' * i}", (128, 128), seed=i) for i in range(8)]
    method, preempted = ADSC(layers=(1,), keep=0.25), {}
    want = expected(FAMILY, method, wanted, new=32)
    common: dict[str, Any] = dict(block_size=BLOCK, max_model_len=512, disable_log_stats=False)
    blocks = 48  # of all layers
    for grouped in (True, False):
        options = dict(num_gpu_blocks_override=blocks * (LAYERS if grouped else 1))
        with engine(FAMILY, method, disable_hybrid_kv_cache_manager=not grouped, **common, **options) as llm:
            assert [each.tokens for each in ask(llm, wanted, max_tokens=32)] == [each.tokens for each in want]
            metrics = llm.get_metrics()
        preempted[grouped] = sum(each.value for each in metrics if each.name == "vllm:num_preemptions")
    assert preempted[True] == 0 < preempted[False]


def test_images_that_the_scheduler_does_not_see() -> None:
    """Shared memory hands them to the workers alone: every layer has all blocks, and the answers are the same."""
    method = ADSC(layers=(1,), keep=0.25)
    want = expected(FAMILY, method, requests(FAMILY))
    with engine(FAMILY, method, mm_processor_cache_type="shm") as llm:
        assert len(llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config.kv_cache_groups) == 1
        assert all(a.agrees(b) for a, b in zip(ask(llm, requests(FAMILY)), want, strict=True))


@pytest.mark.parametrize(
    ("layers", "total", "size"),
    [
        ((4, 8, 16), 28, 4),
        ((9, 18, 27), 36, 9),
        ((13,), 28, 14),  # a layer early would cost another group or more
        ((27,), 28, 28),  # 28 groups for one layer are too many
        ((7, 14), 29, 5),  # 29 is prime: the last group is of four
    ],
)
def test_group_sizes(layers: tuple[int, ...], total: int, size: int) -> None:
    assert group_size(layers, total) == size
    assert -(-total // size) <= MOST
