"""Prompts with fewer placeholders: an image gets as many as the method will keep of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from prometheus_client import Counter, Gauge
from torch import Tensor
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem
from vllm.multimodal.processing.processor import PromptUpdateDetails

from foveate.errors import InputError
from foveate.serving.plan import Item, Plan
from foveate.serving.vllm.prompt import INSIDE
from foveate.serving.vllm.rope import FACTOR, beyond

Shape = Callable[[str, Mapping[str, Any], int], Item]

#: visual tokens of images and videos that requests brought, in their prompts, and in the last layer
TOKENS = Counter("foveate_visual_tokens", "Visual tokens, before and after a method.", ("method", "budget", "stage"))
#: what the labels stand for, once: vLLM's own metrics of its configs are gauges of 1, too, as there may be several processes
CONFIG = Gauge(
    "foveate_method_info",
    "What images are compressed with; always 1.",
    ("method", "budget", "config"),
    multiprocess_mode="mostrecent",
)


@dataclass
class Shortened(PromptUpdateDetails):  # type: ignore[misc]
    """What stands for an image in a prompt.

    Attributes:
        counts: tokens without a method, in the prompt, and in the last layer.
        beyond: positions that it may have beyond the tokens that stand for it.
    """

    counts: tuple[int, int, int] = (0, 0, 0)
    beyond: int = 0


def shorten(processor: Any, plan: Plan, shape: Shape, config: Any) -> Any:
    """The same processor of vLLM; what it puts into prompts is shorter, and counted.

    Args:
        processor: an instance.
        plan: of the method.
        shape: modality, processed data of an item, number of its features without a method -> its grids.
        config: vLLM's, of the model.
    """
    stock, apply, dummy = (
        processor._get_mm_prompt_updates,
        processor._maybe_apply_prompt_updates,
        processor.get_dummy_mm_inputs,
    )
    labels = {"method": plan.name, "budget": f"{plan.keep:.4g}"}
    counters = [TOKENS.labels(**labels, stage=stage) for stage in ("images", "prompt", "last_layer")]
    CONFIG.labels(**labels, config=json.dumps(plan.method.to_dict())).set(1)
    counting = True

    def updates(mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        found = stock(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return {
            modality: [
                [_shorter(update, plan, modality, out_mm_kwargs[modality][i], shape, config) for update in each]
                for i, each in enumerate(items)
            ]
            for modality, items in found.items()
        }

    def count_and_apply(mm_items: Any, mm_res: Any) -> Any:
        if counting:
            contents = [update.content for items in mm_res.prompt_updates.values() for update, *_ in items]
            _check_positions(plan, sum(content.beyond for content in contents), config.max_model_len)
            for counter, *n in zip(counters, *(content.counts for content in contents)):
                counter.inc(sum(n))
        return apply(mm_items, mm_res)

    def uncounted(*args: Any, **kwargs: Any) -> Any:
        nonlocal counting
        counting = False
        try:
            return dummy(*args, **kwargs)
        finally:
            counting = True

    processor._get_mm_prompt_updates = updates
    # Else the engine plans for the features of the largest image without a method; so it asks a made-up one.
    processor.info.get_mm_max_tokens_per_item = lambda seq_len, mm_counts: None
    processor._maybe_apply_prompt_updates, processor.get_dummy_mm_inputs = count_and_apply, uncounted
    return processor


def _shorter(update: Any, plan: Plan, modality: str, kwargs: Any, shape: Shape, config: Any) -> Any:
    full, is_embed = list(update.content.full), update.content.is_embed
    embeds = torch.ones(len(full), dtype=torch.bool) if is_embed is None else is_embed(full)
    places = embeds.nonzero().flatten().tolist()
    item = shape(modality, kwargs.get_data(), len(places))
    kwargs[INSIDE] = MultiModalFieldElem(embeds, MultiModalBatchedField(keep_on_cpu=True))
    counts = plan.entry_counts(item)
    stays = set(item.kept(counts))
    gone = {place for i, place in enumerate(places) if i not in stays}
    kept = [token for i, token in enumerate(full) if i not in gone]
    mask = embeds[[i not in gone for i in range(len(full))]]
    last = (counts, *plan.inner_counts(item))[-1]
    content = Shortened(
        kept,
        None if is_embed is None else partial(_same, mask),
        (item.cells, sum(counts), sum(last)),
        beyond(item, counts, config.uses_mrope),
    )
    return replace(update, content=content)


def _check_positions(plan: Plan, further: int, longest: int) -> None:
    """The model has rows for so many (`rope.lengthen`), and an engine dies of one that it has none for."""
    if further > (FACTOR - 1) * longest:
        raise InputError(
            f"this prompt's images have {further} positions beyond its tokens, as {plan.method!r} leaves each token its own, "
            f"and the server has {FACTOR} times as many positions as --max-model-len, {longest}: send fewer or smaller images, "
            "or keep more of them"
        )


def _same(mask: Tensor, full: Sequence[int]) -> Tensor:
    return mask
