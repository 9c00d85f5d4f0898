"""What `smollm2` answers to packed questions: seeing, blind, and when all visual tokens leave before a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from foveate_reference.exhibits import EXHIBITS, Exhibit, make_exhibit
from foveate_reference.scenes import Question, split_seed
from foveate_reference.vocabulary import TASKS

from .model import IMAGE_ID
from .packing import Packed, Packer, answered, embed, read_images

PER_TASK = {"scene": 2}
MOST = 8
"""Questions of a task about one exhibit at most, of a scene and of others: more would say little that these do not."""
TOGETHER = 2
"""Exhibits that are read at once."""

Hits = dict[str, list[bool]]


class Asked(NamedTuple):
    """Packed exhibits of one kind, and the task of each of their questions, row after row."""

    tasks: list[str]
    packed: Packed


def asked(processor: LlavaProcessor, split: str, images: int, share: dict[str, float]) -> list[Asked]:
    """Exhibits of every kind: `images` scenes, and of the others their share of that."""
    packer = Packer(processor.tokenizer, dict.fromkeys(TASKS, 1.0))
    found = []
    for kind in EXHIBITS:
        count, most = max(1, int(images * share[kind])), PER_TASK.get(kind, MOST)
        exhibits = [_few(make_exhibit(kind, split_seed(split, i)), most) for i in range(count)]
        exhibits = [exhibit for exhibit in exhibits if exhibit.questions]
        for first in range(0, len(exhibits), TOGETHER):
            some = exhibits[first : first + TOGETHER]
            tasks = [question.task for exhibit in some for question in exhibit.questions]
            found.append(Asked(tasks, packer(some, max(len(exhibit.questions) for exhibit in some))))
    return found


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration, batches: Sequence[Asked], *, blind: bool = False
) -> dict[str, float]:
    """Share of right answers by task; `blind` shows grey images."""
    return _mean([_hits(model, batch, [None], blind)[0] for batch in batches])


@torch.no_grad()
def layer_profile(model: LlavaForConditionalGeneration, batches: Sequence[Asked]) -> list[dict[str, float]]:
    """Accuracy by task when all visual tokens leave before layer 0, 1, ..., L (the last: never)."""
    layers = [*range(len(model.model.language_model.layers)), None]
    found = [_hits(model, batch, layers) for batch in batches]
    return [_mean([hits[place] for hits in found]) for place in range(len(layers))]


def _hits(
    model: LlavaForConditionalGeneration, batch: Asked, layers: Sequence[int | None], blind: bool = False
) -> list[Hits]:
    """Right answers by task for each layer before which the visual tokens leave; None: they stay."""
    packed = Packed(*(tensor.to(model.device) for tensor in batch.packed))
    images = torch.full_like(packed.images, 128) if blind else packed.images
    visual = model.model.multi_modal_projector(read_images(model, images))
    states, bias = embed(model, packed, visual)
    entering = list(_through(model, states, bias, packed.positions, 0))
    text = (packed.ids[0] != IMAGE_ID).nonzero()[:, 0]  # the same in all rows: the images come first
    found = []
    for layer in layers:
        if layer is None:
            last, rows = entering[-1], packed
        else:
            # Visual tokens see no text, so the text goes on alone from what it was before that layer.
            own = bias[:, :, text][..., text]
            *_, last = _through(model, entering[layer][:, text], own, packed.positions[:, text], layer)
            rows = packed._replace(labels=packed.labels[:, text], blocks=packed.blocks[:, text])
        right = answered(model, rows, model.model.language_model.norm(last))
        found.append(
            {task: [hit for name, hit in zip(batch.tasks, right) if name == task] for task in set(batch.tasks)}
        )
    return found


def _through(
    model: LlavaForConditionalGeneration, states: Tensor, bias: Tensor, positions: Tensor, first: int
) -> Iterator[Tensor]:
    """What enters each layer from `first` on, and what leaves the last one."""
    language: Any = model.model.language_model
    turns = language.rotary_emb(states, positions)
    yield states
    for layer in language.layers[first:]:
        out = layer(states, attention_mask=bias, position_ids=positions, position_embeddings=turns)
        states = out[0] if isinstance(out, tuple) else out
        yield states


def _few(exhibit: Exhibit, most: int) -> Exhibit:
    """The exhibit with the first questions of each task."""
    chosen: dict[str, list[Question]] = {}
    for question in exhibit.questions:
        chosen.setdefault(question.task, []).append(question)
    return Exhibit(exhibit.pictures, [each for found in chosen.values() for each in found[:most]])


def _mean(found: Sequence[Hits]) -> dict[str, float]:
    joined = {task: [hit for hits in found for hit in hits.get(task, ())] for task in TASKS}
    return {task: sum(hits) / len(hits) if hits else float("nan") for task, hits in joined.items()}
