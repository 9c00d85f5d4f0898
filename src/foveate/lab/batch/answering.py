"""A model with a method, asked in batches of records whose images, videos and texts are of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from foveate.errors import InputError, first_line
from foveate.lab.batch.answers import Answer
from foveate.lab.chats import Chat, Frames, chat
from foveate.lab.records import Record
from foveate.lab.terminal import CommandError

_BROKEN = (InputError, ValueError, TypeError, IndexError, KeyError, RuntimeError, OSError)


class Answerer:
    """A model and its processor, which pads on the left from now on."""

    def __init__(self, model: Any, processor: Any, name: str, max_new_tokens: int, frames: Frames) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or not getattr(processor, "chat_template", None):
            raise CommandError(
                f"the processor of {name!r} has no chat template, so a prompt cannot be put in its format"
            )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.processor, self.pad = model, processor, tokenizer.pad_token_id
        self.max_new_tokens, self.frames = max_new_tokens, frames

    def answer(self, records: Sequence[Record]) -> list[Answer]:
        """An answer to each, in their order; what cannot be read or asked has an error in place of one."""
        found: dict[str, Answer] = {}
        asked: list[tuple[Record, Chat]] = []
        for record in records:
            try:
                if record.error:
                    raise InputError(record.error)
                asked.append((record, chat(record.messages, self.frames)))
            except _BROKEN as error:
                found[record.id] = Answer(record.id, record.digest, error=first_line(error))
        for answer in self._ask(asked):
            found[answer.id] = answer
        return [found[record.id] for record in records]

    def _ask(self, asked: Sequence[tuple[Record, Chat]]) -> list[Answer]:
        """The answers of a batch; where it fails, of its halves, until a single record fails."""
        if not asked:
            return []
        try:
            return self._generate(asked)
        except _BROKEN as error:
            if len(asked) == 1:
                record = asked[0][0]
                return [Answer(record.id, record.digest, error=first_line(error))]
        middle = len(asked) // 2  # outside of the handler, which holds on to the memory of what failed
        return [*self._ask(asked[:middle]), *self._ask(asked[middle:])]

    @torch.inference_mode()
    def _generate(self, asked: Sequence[tuple[Record, Chat]]) -> list[Answer]:
        inputs = self._prepared([one for _, one in asked])
        output = self.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=self.pad
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        counts = (new != self.pad).sum(1).tolist()
        return [
            Answer(record.id, record.digest, text.strip(), int(count))
            for (record, _), text, count in zip(asked, texts, counts)
        ]

    def _prepared(self, chats: Sequence[Chat]) -> Any:
        """A padded batch, on the model's device."""
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if any(one.films for one in chats):
            options |= {"video_metadata": [one.films for one in chats], "do_sample_frames": False}
        inputs = self.processor.apply_chat_template(
            [one.messages for one in chats],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            processor_kwargs=options,
        )
        return inputs.to(self.model.device, self.model.dtype)
