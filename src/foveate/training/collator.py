"""Batches of chats with labels on what the assistant says, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.errors import TrainingError
from foveate.training.data import Chat

IGNORED = -100


class Collator:
    """Turns chats into the inputs of a forward with labels.

    Padding is the processor's, on its side. Labels are found by the chat template: what a conversation up to and with an
    assistant's message has more than the conversation before it (with the generation prompt) is to be learned. Text only is
    tokenised for that; images are processed once.
    """

    def __init__(self, processor: Any, visual: Sequence[int]) -> None:
        """
        Args:
            processor: of the model, with a chat template.
            visual: ids of the placeholder tokens.
        """
        if not getattr(processor, "chat_template", None):
            raise TrainingError(
                "the processor has no chat template, so it cannot be told which words are the assistant's"
            )
        self.processor, self.visual = processor, frozenset(visual)

    def __call__(self, chats: Sequence[Chat]) -> dict[str, Tensor]:
        texts = [self._text(chat.messages) for chat in chats]
        images = [image for chat in chats for image in chat.images]
        inputs = self.processor(
            text=texts,
            images=images or None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._special(texts[0]),
        )
        batch = dict(inputs)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, (chat, text) in enumerate(zip(chats, texts)):
            there = batch["attention_mask"][row].nonzero().flatten()
            full = batch["input_ids"][row, there].tolist()
            learned = torch.tensor(self._learned(chat, text, full), dtype=torch.long)
            labels[row, there[learned]] = batch["input_ids"][row, there[learned]]
        return {**batch, "labels": labels}

    def _learned(self, chat: Chat, text: str, full: list[int]) -> list[int]:
        """Places in ``full`` (no padding, placeholders repeated) of the assistant's tokens."""
        short = self._ids(text)
        places = expanded(short, full, self.visual)
        found: list[int] = []
        for turn, message in enumerate(chat.messages):
            if message["role"] == "assistant":
                before = self._ids(self._text(chat.messages[:turn], prompt=True))
                until = self._ids(self._text(chat.messages[: turn + 1]))
                start, end = _common(before, short), _common(until, short)
                found += [places[i] for i in range(start, end) if short[i] not in self.visual]
        if not found:
            raise TrainingError("a chat has no assistant's word after its template: every answer in it is empty")
        return found

    def _text(self, messages: list[dict[str, Any]], prompt: bool = False) -> str:
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False))

    def _ids(self, text: str) -> list[int]:
        ids = self.processor.tokenizer(text, add_special_tokens=self._special(text))["input_ids"]
        return [int(token) for token in ids]

    def _special(self, text: str) -> bool:
        """Tell whether the tokenizer has to add the token that begins a sequence: not if the template did."""
        first = self.processor.tokenizer.bos_token
        return not (first and text.startswith(first))


def expanded(short: Sequence[int], full: Sequence[int], visual: frozenset[int]) -> list[int]:
    """Where each token of ``short`` is in ``full``, in which placeholders are repeated, once for each visual token."""
    places: list[int] = []
    at = 0
    for i, token in enumerate(short):
        if i and token in visual and short[i - 1] == token:
            places.append(places[-1])  # images next to each other are one run; nothing to be learned is between them
            continue
        if at >= len(full) or full[at] != token:
            raise TrainingError(
                "the processor makes other tokens of a chat than its tokenizer, so labels cannot be placed"
            )
        places.append(at)
        at += 1
        while token in visual and at < len(full) and full[at] == token:
            at += 1
    return places


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
