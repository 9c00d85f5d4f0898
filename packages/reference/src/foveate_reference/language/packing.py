"""Many questions behind one image: token ids, labels, and who may attend to whom.

A sequence holds the images of an exhibit once and all questions about it after them. Each question sees the images and
itself, at the positions that it would have alone, so its answer is the one that it would get alone (tested)::

    <|im_start|>user\\n  image  \\n    question 0  <|im_end|>\\n<|im_start|>assistant\\n  answer 0  <|im_end|>    question 1 ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveate_reference.batches import IGNORED
from foveate_reference.exhibits import Exhibit
from foveate_reference.model import tiles
from foveate_reference.scenes import Question
from foveate_reference.vocabulary import CELL, SIZE

from .model import END, IMAGE, IMAGE_ID, START
from .sentences import answer_in_english, question_in_english

TOKENS = (SIZE // CELL) ** 2
"""Visual tokens of an image of 160 x 160 px."""


class Packed(NamedTuple):
    """B exhibits of n images of 160 x 160 px, with their questions as one sequence of T tokens each.

    Attributes
    ----------
    images : uint8 (B, n, 160, 160, 3)
        A larger image is cut into tiles, row by row.
    ids : int64 (B, T)
    labels : int64 (B, T)
        At a place, the token that is right after it; -100 where nothing is asked.
    blocks : int64 (B, T)
        0 for what all questions see, k for question k, -1 for padding.
    positions : int64 (B, T)
    weights : float32 (B, T)
        Weight of each label.
    pointers : bool (B, Q, n * 100)
        The visual tokens that a question is about; none for a question about the background.
    asking : int64 (B, Q)
        Place of the last token of a question's prompt; 0 where an exhibit has fewer than Q questions.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    blocks: Tensor
    positions: Tensor
    weights: Tensor
    pointers: Tensor
    asking: Tensor

    @property
    def mask(self) -> Tensor:
        """May row attend to column? bool (B, T, T)."""
        length, device = self.ids.shape[1], self.ids.device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        same = (self.blocks[:, :, None] == self.blocks[:, None, :]) | (self.blocks[:, None, :] == 0)
        return causal & same


def read_images(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """The tower's tokens (B, n * 100, width) of images, uint8 (B, n, H, W, 3)."""
    pixels = images.flatten(0, 1).float() / 127.5 - 1
    side = pixels.shape[1:3]
    tiled = pixels.view(len(pixels), side[0] // SIZE, SIZE, side[1] // SIZE, SIZE, 3).permute(0, 1, 3, 5, 2, 4)
    states = model.model.vision_tower(tiled.flatten(0, 2), output_hidden_states=True).hidden_states[-2]
    seen: Tensor = states[:, 1:].reshape(len(images), -1, states.shape[-1])
    return seen


def embed(model: LlavaForConditionalGeneration, packed: Packed, visual: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the language model, (B, T, width), and what is added to its attention scores, (B, 1, T, T).

    `visual` are the visual tokens (B, n * 100, width) as the projector makes them.
    """
    embedded = model.model.language_model.embed_tokens(packed.ids)
    where = packed.ids == IMAGE_ID
    embedded = embedded.masked_scatter(where[..., None], visual.to(embedded.dtype))
    mask = packed.mask
    bias = torch.zeros_like(mask, dtype=embedded.dtype).masked_fill(~mask, torch.finfo(embedded.dtype).min)
    return embedded, bias[:, None]


def answered(model: LlavaForConditionalGeneration, packed: Packed, states: Tensor) -> list[bool]:
    """Whether each question, row after row, has every token of its answer right, given the last hidden states (B, T, width).

    So the model would write that answer, word by word, and end there.
    """
    there = packed.labels != IGNORED
    wrong = torch.zeros_like(there)
    wrong[there] = model.lm_head(states[there]).argmax(-1) != packed.labels[there]
    return [
        not bool(wrong[row, packed.blocks[row] == block].any())
        for row in range(len(packed.ids))
        for block in range(1, int(packed.blocks[row].max()) + 1)
    ]


@dataclass(frozen=True)
class Packer:
    """Packs exhibits with a tokenizer of SmolLM2.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerFast
        Of `make_smollm2_processor`.
    weight_of : dict from task to float
        Weight of each task's answers.
    """

    tokenizer: PreTrainedTokenizerFast
    weight_of: dict[str, float]

    def __call__(self, exhibits: Sequence[Exhibit], most: int) -> Packed:
        """Pack exhibits whose pictures agree in number and size, with at most `most` questions each."""
        images = [np.stack(tiles([picture.image for picture in exhibit.pictures])) for exhibit in exhibits]
        head = self._head(len(images[0]))
        rows = [self._row(exhibit.questions[:most], head) for exhibit in exhibits]
        length, asked = max(len(row[0]) for row in rows), max(len(row[5]) for row in rows)
        size = len(rows)
        ids, positions = torch.zeros(size, length, dtype=torch.long), torch.zeros(size, length, dtype=torch.long)
        labels = torch.full((size, length), IGNORED)
        blocks = torch.full((size, length), -1)
        weights = torch.zeros(size, length)
        asking = torch.zeros(size, asked, dtype=torch.long)
        pointers = torch.zeros(size, asked, len(images[0]) * TOKENS, dtype=torch.bool)
        for number, (row, exhibit) in enumerate(zip(rows, exhibits, strict=True)):
            filled: list[Any] = list(row[:5])
            for target, values in zip((ids, labels, blocks, positions, weights), filled, strict=True):
                target[number, : len(values)] = torch.tensor(values, dtype=target.dtype)
            asking[number, : len(row[5])] = torch.tensor(row[5])
            for place, question in enumerate(exhibit.questions[:most]):
                cells = exhibit.under(question.about) > 0.5 if question.about else None
                if cells is not None:
                    side = SIZE // CELL
                    tiled = [
                        cell[top : top + side, left : left + side]
                        for cell in cells
                        for top in range(0, cell.shape[0], side)
                        for left in range(0, cell.shape[1], side)
                    ]
                    pointers[number, place] = torch.from_numpy(np.stack(tiled).reshape(-1))
        return Packed(torch.from_numpy(np.stack(images)), ids, labels, blocks, positions, weights, pointers, asking)

    def _head(self, images: int) -> list[int]:
        """Token ids before the questions."""
        parts = self.tokenizer(f"{START}user\n" + f"{IMAGE}\n" * images, add_special_tokens=False).input_ids
        return [token for part in parts for token in [part] * (TOKENS if part == IMAGE_ID else 1)]

    def _row(
        self, questions: Sequence[Question], head: list[int]
    ) -> tuple[list[int], list[int], list[int], list[int], list[float], list[int]]:
        """Ids, labels, blocks, positions, weights and places of the last prompt tokens of an exhibit."""
        ids, labels = list(head), [IGNORED] * len(head)
        blocks, positions = [0] * len(head), list(range(len(head)))
        weights, asking = [0.0] * len(head), []
        for number, question in enumerate(questions, 1):
            english = question_in_english(question.task, question.text)
            asked = self.tokenizer(f"{english}{END}\n{START}assistant\n", add_special_tokens=False).input_ids
            answer = self.tokenizer(f"{answer_in_english(question.answer)}{END}", add_special_tokens=False).input_ids
            block = [*asked, *answer[:-1]]
            ids += block
            labels += [IGNORED] * (len(asked) - 1) + answer
            blocks += [number] * len(block)
            positions += range(len(head), len(head) + len(block))
            weight = self.weight_of[question.task] / len(answer)
            weights += [0.0] * (len(asked) - 1) + [weight] * len(answer)
            asking.append(len(ids) - len(answer))
        return ids, labels, blocks, positions, weights, asking
