"""A model that answers batches of chats, with a method attached or without. Knows nothing of lmms-eval."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from foveate.errors import ConfigError, InputError, first_line
from foveate.handle import Handle, compress, host_of
from foveate.lab.chats import Chat
from foveate.lab.evaluation.asking import Cost
from foveate.method import Host, Method

#: What a task may say about generation that a model of transformers does not need to know.
OTHERS = frozenset({"until", "max_gen_toks", "image_aspect_ratio", "modality", "tokens"})


@dataclass(frozen=True)
class Answer:
    """What came out for one chat.

    Attributes:
        text: the continuation, cut before the first of the task's stopping strings.
        tokens: generated, the padding of a batch left out.
        cost: mean of its batch; None: of the stock model.
    """

    text: str
    tokens: int
    cost: Cost | None


class Asker:
    """A model, its processor, and what is attached.

    Attributes:
        model, processor: as `foveate.lab.loading.load` gives them; padding goes to the left.
        trained: the method that its adapter was trained with, or None.
        handle: of what is attached now, or None.
    """

    def __init__(self, model: Any, processor: Any, trained: Method | None = None) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or not getattr(processor, "chat_template", None):
            raise ConfigError("the model's processor has no tokenizer or no chat template, so it cannot be asked")
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.processor, self.trained = model, processor, trained
        self.handle: Handle | None = None
        self._pad = tokenizer.pad_token_id

    @cached_property
    def host(self) -> Host:
        """What a method may know about the model."""
        return host_of(self.model)

    @contextmanager
    def carrying(self, method: Method | None) -> Iterator[None]:
        """Inside, the method is attached; None: the stock model."""
        if method is None:
            yield
            return
        with compress(self.model, method) as self.handle:
            try:
                yield
            finally:
                self.handle = None

    @torch.inference_mode()
    def generate(self, chats: Sequence[Chat], options: Mapping[str, Any], most: int) -> list[Answer]:
        """Continue each chat.

        Args:
            chats: with the same kinds of media.
            options: of the task: ``max_new_tokens``, ``until``, ``temperature`` and whatever else transformers knows.
            most: tokens to generate at most where the task does not say.
        """
        inputs = self.prepare(chats)
        length = inputs["input_ids"].shape[1]
        output = self.model.generate(**inputs, **generation(options, most), pad_token_id=self._pad)
        cost = self._cost(len(chats))
        new = output[:, length:]
        words = self.processor.batch_decode(new, skip_special_tokens=True)
        count = (new != self._pad).sum(1).tolist()
        return [Answer(_cut(word, options.get("until")), int(n), cost) for word, n in zip(words, count)]

    @torch.inference_mode()
    def loss(self, chats: Sequence[Chat], endings: Sequence[str]) -> list[tuple[float, bool, Cost | None]]:
        """How well each ending follows its chat: mean negative log-likelihood of its tokens, and whether they are the
        likeliest, one after the other; and the cost."""
        inputs = self.prepare(chats, endings)
        ids, tokenizer = inputs["input_ids"], self.processor.tokenizer
        lengths = [_ending(tokenizer, row.tolist(), ending) for row, ending in zip(ids.cpu(), endings)]
        logits = self.model(**inputs, logits_to_keep=max(lengths) + 1).logits[:, -max(lengths) - 1 : -1].float()
        cost = self._cost(len(chats))
        found = []
        for row, n in enumerate(lengths):
            there, wanted = logits[row, -n:], ids[row, -n:]
            loss = torch.nn.functional.cross_entropy(there, wanted)
            found.append((float(loss), bool((there.argmax(-1) == wanted).all()), cost))
        return found

    def spend(self, inputs: Any, method: Method) -> Cost:
        """What one step of a prepared batch costs with ``method``."""
        rows = len(inputs["input_ids"])
        try:
            with torch.inference_mode(), compress(self.model, method) as handle:
                self.model.generate(**inputs, **generation({}, most=1), pad_token_id=self._pad)
                return Cost.mean(handle.report(), rows)
        except torch.OutOfMemoryError:
            raise InputError(f"{rows} questions at once are too many for this device's memory: ask fewer") from None

    def prepare(self, chats: Sequence[Chat], endings: Sequence[str] = ()) -> Any:
        """Inputs of the model, on its device; with what each chat ends on, if anything."""
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if any(chat.films for chat in chats):
            options |= {"video_metadata": [chat.films for chat in chats], "do_sample_frames": False}
        conversations: list[Any] = [chat.messages for chat in chats]
        for row, ending in enumerate(endings):
            conversations[row] = [
                *conversations[row],
                {"role": "assistant", "content": [{"type": "text", "text": ending}]},
            ]
        try:
            inputs = self.processor.apply_chat_template(
                conversations,
                tokenize=True,
                return_dict=True,
                add_generation_prompt=not endings,
                continue_final_message=bool(endings),
                processor_kwargs=options,
            )
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise InputError(f"the model's processor refuses a question: {first_line(error)}") from None
        return inputs.to(self.model.device, self.model.dtype)

    def _cost(self, rows: int) -> Cost | None:
        return None if self.handle is None else Cost.mean(self.handle.report(), rows)


def generation(options: Mapping[str, Any], most: int) -> dict[str, Any]:
    """What `generate` is told: greedy unless the task asks for a temperature, and not for ``do_sample: false`` beside it.

    Raises:
        ConfigError: transformers does not know an option of the task.
    """
    from transformers import GenerationConfig

    known = {name: value for name, value in options.items() if name not in OTHERS and value is not None}
    unknown = [name for name in known if not hasattr(GenerationConfig(), name)]
    if unknown:
        raise ConfigError(f"the task sets {unknown[0]!r} for generation, which transformers does not know")
    known.setdefault("max_new_tokens", int(options.get("max_gen_toks") or most))
    sampled = float(known.get("temperature", known.get("do_sample", False))) > 0
    if sampled and known.get("do_sample", True):
        return {**known, "do_sample": True}
    return {**known, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def group_key(options: Mapping[str, Any]) -> str:
    """Equal for questions that can be generated together."""
    return json.dumps(options, sort_keys=True, default=str)


def _cut(text: str, until: Any) -> str:
    stops = [until] if isinstance(until, str) else until or []
    ends = [text.find(stop) for stop in stops if stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))].strip()


def _ending(tokenizer: Any, row: list[int], ending: str) -> int:
    """How many tokens at the end of ``row`` are the ending's: the fewest whose text ends with all of it."""
    for n in range(1, len(row) + 1):
        if tokenizer.decode(row[-n:]).endswith(ending.strip()):
            return n
    raise InputError(f"the chat template of the model changes the choice {ending!r}, so it cannot be scored")
