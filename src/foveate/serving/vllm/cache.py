"""KV memory: layers that hold fewer tokens hold fewer blocks, and which of these requests may share.

vLLM gives each *group* of layers blocks of its own, out of one pool, and lets others register kinds of groups. A block has the
same size in every group, so groups are of equally many layers: successive ones, with blocks for the tokens of the first.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from foveate.serving.plan import Plan
from foveate.serving.vllm.prompt import Prompt

MOST = 8  # groups: each has a block table, and metadata in every step


class ReducedManager(FullAttentionManager):  # type: ignore[misc]
    """Blocks of a group of layers.

    Attributes:
        prompts: of the requests that have blocks, by id; the scheduler fills it.
    """

    prompts: Mapping[str, Prompt] = {}

    def get_num_blocks_to_allocate(self, request_id: str, num_tokens: int, *args: Any, **options: Any) -> int:
        """Tell how many a request needs for its first ``num_tokens`` tokens, beyond those that it has."""
        needed: int = super().get_num_blocks_to_allocate(
            request_id, self._left(request_id, num_tokens), *args, **options
        )
        return needed

    def allocate_new_blocks(self, request_id: str, num_tokens: int, *args: Any, **options: Any) -> Any:
        """Give them to it."""
        return super().allocate_new_blocks(request_id, self._left(request_id, num_tokens), *args, **options)

    def _left(self, request_id: str, tokens: int) -> int:
        depth, prompt = self.kv_cache_spec.depth, self.prompts.get(request_id)
        if depth == 0 or prompt is None:
            return tokens
        return tokens - int(prompt.dropped[depth - 1, prompt.ended(tokens)])


@dataclass(frozen=True, kw_only=True)
class ReducedSpec(FullAttentionSpec):  # type: ignore[misc]
    """What a layer keeps.

    Attributes:
        group: of layers, from 0.
        depth: before how many layers tokens have left, up to the group's first one.
    """

    group: int
    depth: int

    @classmethod
    def merge(cls, specs: list[Any]) -> Any:
        """That of a group of layers; vLLM tries others, too, and expects an ``AssertionError``."""
        if any(spec != specs[0] for spec in specs):
            raise AssertionError("layers of different groups")
        return specs[0]

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Tell whether all of them are of one group."""
        return all(spec == self for spec in kv_cache_specs.values())


def _register() -> None:
    KVCacheSpecRegistry._ensure_registered()  # it registers its own only if there are none
    KVCacheSpecRegistry.register(ReducedSpec, ReducedManager)


_register()


def group_size(layers: Sequence[int], total: int) -> int:
    """Of how many layers a group should be, ``total`` if one group is best.

    Args:
        layers: before which tokens leave.
        total: layers of the model.
    """

    def saved(size: int) -> int:
        padding = -total % size
        return sum(total - min(-(-layer // size) * size, total) for layer in layers) - padding

    def fits(size: int) -> bool:
        last = total % size or size
        return -(-total // size) <= MOST and size < 1.5 * last  # or vLLM would cut the groups again

    return max((size for size in range(1, total + 1) if fits(size)), key=lambda size: (saved(size), size))


def reduce_groups(attention: Sequence[Any], plan: Plan) -> None:
    """Let the attention layers of a model ask for such groups."""
    size = group_size(plan.layers, len(attention))
    if size == len(attention):
        return
    for i, module in enumerate(attention):
        group = i // size
        module.get_kv_cache_spec = _reduced(module.get_kv_cache_spec, group, bisect_right(plan.layers, group * size))


def _reduced(stock: Callable[[Any], Any], group: int, depth: int) -> Callable[[Any], Any]:
    def spec(vllm_config: Any) -> Any:
        found = stock(vllm_config)
        # Other kinds have managers of their own.
        if type(found) is not FullAttentionSpec:
            return found
        return ReducedSpec(
            **{f.name: getattr(found, f.name) for f in fields(found) if f.init}, group=group, depth=depth
        )

    return spec


def share_prompts(manager: Any, read: Callable[[Any], Prompt]) -> None:
    """Tell the groups of a cache of what the requests consist.

    Args:
        manager: vLLM's, of the cache.
        read: a request -> its prompt.
    """
    reduced = [each for each in manager.coordinator.single_type_managers if isinstance(each, ReducedManager)]
    if not reduced:
        return
    prompts: dict[str, Prompt] = {}
    for each in reduced:
        each.prompts = prompts
    allocate, free, pop = manager.allocate_slots, manager.free, manager.pop_blocks_for_free

    def allocate_for(request: Any, *args: Any, **options: Any) -> Any:
        known = prompts.get(request.request_id)
        if known is None or len(known.placed) != len(request.mm_features):
            prompts[request.request_id] = read(request)
        return allocate(request, *args, **options)

    def forget(then: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def freed(request: Any) -> Any:
            prompts.pop(request.request_id, None)
            return then(request)

        return freed

    manager.allocate_slots, manager.free, manager.pop_blocks_for_free = allocate_for, forget(free), forget(pop)


def share_text(manager: Any) -> None:
    """Let requests share blocks of the text before their first image, and no others (vLLM's prefix caching).

    Up to there every layer has every token, so a block of any layer holds what vLLM says it does. Behind an image a layer that
    dropped ``n`` of its tokens is ``n`` slots ahead: its last block is full in part, and whoever goes on writes into it.

    Args:
        manager: vLLM's, of the cache.
    """
    coordinator = manager.coordinator
    stock = coordinator.cache_blocks

    @functools.wraps(stock)
    def known(request: Any, num_computed_tokens: int) -> None:
        text = min((feature.mm_position.offset for feature in request.mm_features or ()), default=num_computed_tokens)
        stock(request, min(num_computed_tokens, text))

    coordinator.cache_blocks = known
