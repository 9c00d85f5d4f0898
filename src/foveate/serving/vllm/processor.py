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
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem, MultiModalSharedField
from vllm.multimodal.parse import ProcessorBatchItems
from vllm.multimodal.processing.processor import PromptUpdateDetails

from foveate.errors import InputError
from foveate.serving.budgets import KEY, SERVERS, Choice, asked, of_picture
from foveate.serving.plan import Item, Plan
from foveate.serving.profiles import most_asked
from foveate.serving.vllm.prompt import CHOICE, INSIDE, chosen, inside_of
from foveate.serving.vllm.rope import FACTOR, beyond

Shape = Callable[[str, Mapping[str, Any], int], Item]

#: visual tokens of images and videos that requests brought, in their prompts, and in the last layer
TOKENS = Counter(
    "foveate_visual_tokens", "Visual tokens, before and after a method.", ("method", "budget", "profile", "stage")
)
STAGES = ("images", "prompt", "last_layer")
#: what the labels stand for, once: vLLM's own metrics of its configs are gauges of 1, too, as there may be several processes
CONFIG = Gauge(
    "foveate_method_info",
    "What images are compressed with; always 1.",
    ("method", "budget", "profile", "config"),
    multiprocess_mode="mostrecent",
)


@dataclass
class Shortened(PromptUpdateDetails):  # type: ignore[misc]
    """What stands for an image in a prompt.

    Attributes:
        counts: tokens without a method, in the prompt, and in the last layer.
        beyond: positions that it may have beyond the tokens that stand for it.
        labels: of what its prompt asks for, for metrics.
    """

    counts: tuple[int, int, int] = (0, 0, 0)
    beyond: int = 0
    labels: tuple[str, str, str] = ("", "", "")


class Shortener:
    """What a processor of vLLM does otherwise: its prompts are shorter, and counted.

    Args:
        processor: an instance, which is changed.
        plan: of the method.
        shape: modality, processed data of an item, number of its features without a method -> its grids.
        config: vLLM's, of the model.
    """

    def __init__(self, processor: Any, plan: Plan, shape: Shape, config: Any) -> None:
        self.plan, self.shape, self.config = plan, shape, config
        self.counting = True
        for choice in (SERVERS, *(Choice(profile=name) for name in plan.profiles)):
            labels = _labels(plan, choice)
            CONFIG.labels(*labels, json.dumps(plan.of(choice).method.to_dict())).set(1)
            for stage in STAGES:
                TOKENS.labels(*labels, stage)  # from now on it is there, be it 0
        ours: dict[str, Callable[..., Any]] = {
            "apply": self._apply,
            "_apply_hf_processor_main": self._process,
            "_get_mm_fields_config": self._fields,
            "_get_mm_prompt_updates": self._updates,
            "_maybe_apply_prompt_updates": self._count,
            "get_dummy_inputs": self._largest,
            "get_dummy_mm_inputs": self._uncounted,
        }
        for name, our in ours.items():
            setattr(processor, name, partial(our, getattr(processor, name)))
        # Else the engine plans for the features of the largest image without a method; so it asks a made-up one.
        processor.info.get_mm_max_tokens_per_item = lambda seq_len, mm_counts: None

    def _apply(self, stock: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        asked(inputs.hf_processor_mm_kwargs.get(KEY), self.plan)  # a wrong budget is refused before anything is done
        return stock(inputs, *args, **options)

    def _process(self, stock: Any, mm_items: Any, hf_kwargs: Any) -> Any:
        return stock(mm_items, _others(hf_kwargs))

    def _fields(self, stock: Any, processed: Any, hf_kwargs: Any) -> Any:
        return stock(processed, _others(hf_kwargs))

    def _updates(self, stock: Any, mm_items: Any, hf_kwargs: Any, out: Any) -> Any:
        choice = asked(hf_kwargs.get(KEY), self.plan)
        return {
            modality: [
                [self._shorter(update, modality, out[modality][i], own) for update in each]
                for i, (each, own) in enumerate(zip(items, self._choices(choice, mm_items, modality)))
            ]
            for modality, items in stock(mm_items, _others(hf_kwargs), out).items()
        }

    def _choices(self, choice: Choice, mm_items: Any, modality: str) -> list[Choice]:
        """Return what each image or video of a prompt gets that asks for ``choice``; ready-made features have no pixels."""
        items = mm_items.get(modality, ())
        if not isinstance(items, ProcessorBatchItems):
            return [choice] * len(items)
        return [of_picture(choice, self.plan, items.get(i)) for i in range(len(items))]

    def _shorter(self, update: Any, modality: str, kwargs: Any, choice: Choice) -> Any:
        full, is_embed, plan = list(update.content.full), update.content.is_embed, self.plan.of(choice)
        embeds = torch.ones(len(full), dtype=torch.bool) if is_embed is None else is_embed(full)
        ids = torch.tensor(full).masked_fill(embeds, -1)
        kwargs[INSIDE] = MultiModalFieldElem(ids, MultiModalBatchedField(keep_on_cpu=True))
        item = self.shape(modality, kwargs.get_data(), int(embeds.sum()))
        embeds = inside_of(item, ids)
        places = embeds.nonzero().flatten().tolist()
        if choice != SERVERS:  # shared, so that the engine encodes images at once whose prompts ask for the same
            shared = MultiModalSharedField(batch_size=1, keep_on_cpu=True)
            kwargs[CHOICE] = MultiModalFieldElem(chosen(choice, self.plan), shared)
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
            beyond(item, counts, self.config.uses_mrope),
            _labels(self.plan, choice),
        )
        return replace(update, content=content)

    def _count(self, stock: Any, mm_items: Any, mm_res: Any) -> Any:
        if self.counting:
            contents = [update.content for items in mm_res.prompt_updates.values() for update, *_ in items]
            _check_positions(self.plan, sum(content.beyond for content in contents), self.config.max_model_len)
            for content in contents:
                for stage, n in zip(STAGES, content.counts):
                    TOKENS.labels(*content.labels, stage).inc(n)
        return stock(mm_items, mm_res)

    def _largest(self, stock: Any, *args: Any, **options: Any) -> Any:
        """Return what the engine plans its memory with: images of which as much is left as may be."""
        inputs = stock(*args, **options)
        if most := most_asked(self.plan):
            inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, KEY: most}
        return inputs

    def _uncounted(self, stock: Any, *args: Any, **options: Any) -> Any:
        self.counting = False
        try:
            return stock(*args, **options)
        finally:
            self.counting = True


def _others(hf_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of stock processors."""
    return {name: value for name, value in hf_kwargs.items() if name != KEY}


def _labels(plan: Plan, choice: Choice) -> tuple[str, str, str]:
    """Return method, budget and profile; prompts may ask for any budget, and there should not be many of them."""
    found = plan.of(choice)
    return found.name, f"{found.keep:.2g}", choice.profile


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
