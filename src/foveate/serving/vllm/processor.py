"""Prompts with fewer placeholders: an image gets as many as the method will keep of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal.processing.processor import PromptUpdateDetails

from foveate.ops.segments import offsets
from foveate.serving.plan import Item, Plan

Shape = Callable[[str, Mapping[str, Any], int], Item]


def shorten(processor: Any, plan: Plan, shape: Shape) -> Any:
    """The same processor of vLLM; what it puts into prompts is shorter.

    Args:
        processor: an instance.
        plan: of the method.
        shape: modality, processed data of an item, number of its features without a method -> its grids.
    """
    stock = processor._get_mm_prompt_updates

    def updates(mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        found = stock(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return {
            modality: [
                [_shorter(update, plan, modality, out_mm_kwargs[modality][i].get_data(), shape) for update in each]
                for i, each in enumerate(items)
            ]
            for modality, items in found.items()
        }

    processor._get_mm_prompt_updates = updates
    return processor


def _shorter(update: Any, plan: Plan, modality: str, data: Mapping[str, Any], shape: Shape) -> Any:
    full, is_embed = list(update.content.full), update.content.is_embed
    embeds = torch.ones(len(full), dtype=torch.bool) if is_embed is None else is_embed(full)
    places = embeds.nonzero().flatten().tolist()
    item = shape(modality, data, len(places))
    stays = set(places_kept(item, plan.entry_counts(item)))
    gone = {place for i, place in enumerate(places) if i not in stays}
    kept = [token for i, token in enumerate(full) if i not in gone]
    mask = embeds[[i not in gone for i in range(len(full))]]
    of_mask = None if is_embed is None else (lambda _: mask)
    return replace(update, content=PromptUpdateDetails(kept, of_mask))


def places_kept(item: Item, counts: Sequence[int]) -> list[int]:
    """Which of an item's features stay in the prompt, as if of every span the first ones did; what is no patch stays."""
    kept, place, cell = [], 0, 0
    gaps = dict(item.gaps)
    sizes = [height * width for frames, height, width in item.grid for _ in range(frames)]
    for start, size, count in zip(offsets(sizes), sizes, counts):
        for i in range(size):
            if i < count:
                kept.append(place)
            place, cell = place + 1, start + i + 1
            kept += range(place, place + gaps.get(cell, 0))
            place += gaps.get(cell, 0)
    return kept
