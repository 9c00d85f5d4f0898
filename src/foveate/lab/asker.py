"""A model that is asked in batches of chats, with a method attached or without, and what that costs. Shared by the commands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foveate.cost import Report
from foveate.errors import ConfigError, InputError, first_line
from foveate.handle import Handle, attach_learned, host_of
from foveate.lab.chats import Chat
from foveate.lab.devices import device_of, is_out_of_memory, put
from foveate.lab.loading import load
from foveate.lab.speech import Speech, speech_of
from foveate.lab.terminal import CommandError
from foveate.method import Host, Method
from foveate.trained import Trained, adapted

#: What a task may say about generation that a model of transformers does not need to know.
OTHERS = frozenset({"until", "max_gen_toks", "image_aspect_ratio", "modality", "tokens"})
#: Numbers of a weight that tell it from another.
PROBED = 16


@dataclass(frozen=True)
class Cost:
    """What a question cost, the mean over its batch; and what it costs the stock model.

    Attributes:
        tokens: visual tokens per decoder layer.
        flops: of the whole call, the tower and the method's own work included.
        kv: bytes of the KV cache.
        full_tokens, full_flops, full_kv: of the stock model.
    """

    tokens: float
    flops: float
    kv: float
    full_tokens: float
    full_flops: float
    full_kv: float

    def of(self, by: str) -> tuple[float, float]:
        """What was spent of ``tokens``, ``flops`` or ``kv``, and what the stock model spends."""
        return getattr(self, by), getattr(self, f"full_{by}")

    def share(self, by: str) -> float:
        """What was spent over what the stock model spends; 1 where that is nothing."""
        now, full = self.of(by)
        return now / full if full else 1.0

    @classmethod
    def total(cls, costs: Iterable[tuple[Cost, float]]) -> Cost:
        """Of several together, each counted by its weight, so that an image counts by what it costs."""
        weighted = list(costs)
        return cls(*(sum(getattr(cost, field.name) * weight for cost, weight in weighted) for field in fields(cls)))

    @classmethod
    def mean(cls, report: Report, questions: int) -> Cost:
        """That of a call that asked so many."""
        return cls(
            report.mean_tokens,
            sum(report.flops.values()) / questions,
            report.kv_bytes / questions,
            report.visual_tokens / questions,
            sum(report.full_flops.values()) / questions,
            report.full_kv_bytes / questions,
        )


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
        model, processor: as `foveate.lab.loading.load` gives them; padding goes to the left from now on.
        name: of the model, for messages and reports.
        learned: what was trained for it, whose adapter is on it, or None.
        handle: of what is attached now, or None.
        pad: the token that fills rows up.
    """

    def __init__(self, model: Any, processor: Any, name: str = "", learned: Trained | None = None) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or not getattr(processor, "chat_template", None):
            raise CommandError(
                f"the processor of {name or type(model).__name__!r} has no tokenizer or no chat template, so a prompt cannot "
                "be put in its format"
            )
        tokenizer.padding_side = "left"  # answers begin where prompts end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.processor, self.name, self.learned = model, processor, name, learned
        self.handle: Handle | None = None
        self.pad: int = tokenizer.pad_token_id

    @property
    def trained(self) -> Method | None:
        """The method that was trained for it."""
        return None if self.learned is None else self.learned.method

    def attach(self, method: Method) -> Handle:
        """Attach a method, with the learned parts of the one that was trained, if it is of that kind."""
        return attach_learned(self.model, method, self.learned)

    @cached_property
    def host(self) -> Host:
        """What a method may know about the model."""
        return host_of(self.model)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its configuration and of some numbers of each weight: another checkpoint has another one."""
        found = hashlib.sha256(self.model.config.to_json_string().encode())
        learned = {} if self.learned is None else self.learned.modules
        for name, weights in [*sorted(self.model.state_dict().items()), *sorted(learned.items())]:
            found.update(f"{name} {tuple(weights.shape)}".encode())
            if not weights.is_meta:
                flat = weights.reshape(-1)
                some = flat[:: max(1, len(flat) // PROBED)][:PROBED]
                found.update(some.to("cpu", torch.float32).numpy().tobytes())
        return found.hexdigest()

    @cached_property
    def speech(self) -> Speech:
        """How the reference benchmark speaks to it."""
        return speech_of(self.processor)

    @property
    def side(self) -> int:
        """Its tower takes squares of so many pixels and no others, as those of the reference LLaVAs do; else 0."""
        side = getattr(getattr(self.model.config, "vision_config", None), "image_size", None)
        return side if isinstance(side, int) else 0

    @contextmanager
    def carrying(self, method: Method | None) -> Iterator[None]:
        """Inside, the method is attached; None: the stock model."""
        if method is None:
            yield
            return
        with self.attach(method) as self.handle:
            try:
                yield
            finally:
                self.handle = None

    def prepare(self, chats: Sequence[Chat], endings: Sequence[str] = ()) -> Any:
        """A padded batch on the model's device; with what each chat ends on, if anything."""
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
        except (
            ValueError,
            TypeError,
            IndexError,
            KeyError,
        ) as error:  # such as an image of a shape that it does not take
            names = ", ".join(chat.name for chat in chats if chat.name)
            what = f"the prompts {names}" if names else "a question"
            raise InputError(f"the model's processor refuses {what}: {first_line(error)}") from None
        return inputs.to(self.model.device, self.model.dtype)

    def generate(self, chats: Sequence[Chat], options: Mapping[str, Any], most: int) -> list[Answer]:
        """Continue each chat.

        Args:
            chats: with the same kinds of media.
            options: of the task: ``max_new_tokens``, ``until``, ``temperature`` and whatever else transformers knows.
            most: tokens to generate at most where the task does not say.
        """
        return self.answers(self.prepare(chats), options, most)

    def answers(self, inputs: Any, options: Mapping[str, Any], most: int) -> list[Answer]:
        """Continue each row of a prepared batch, as `generate` does."""
        new = self._continued(inputs, options, most)
        cost = self._cost(len(new))
        words = self.processor.batch_decode(new, skip_special_tokens=True)
        count = (new != self.pad).sum(1).tolist()
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
            with self.attach(method) as handle:
                self._continued(inputs, {}, most=1)
                return Cost.mean(handle.report(), rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(f"{rows} questions at once are too many for this device's memory: ask fewer") from None

    @torch.inference_mode()
    def _continued(self, inputs: Any, options: Mapping[str, Any], most: int) -> Tensor:
        """The new tokens ``(B, N)``."""
        output: Tensor = self.model.generate(**inputs, **generation(options, most), pad_token_id=self.pad)
        return output[:, inputs["input_ids"].shape[1] :]

    def _cost(self, rows: int) -> Cost | None:
        return None if self.handle is None else Cost.mean(self.handle.report(), rows)


def load_asker(
    name: str, dtype: str = "auto", device: Any = "auto", attn: str | None = None, adapter: str | None = None
) -> Asker:
    """A model by name, as `foveate.lab.loading.load` finds it, with an adapter on it, whose method it says.

    Args:
        name: a folder, an id on the Hugging Face hub, or a reference model.
        dtype, attn: see `load`.
        device: in words, or one of torch.
        adapter: folder or hub id of a trained method.
    """
    where = device_of(device) if isinstance(device, str) else device
    model, processor = load(name, dtype, attn)
    put(model, where, name)
    learned = None if adapter is None else adapted(model, adapter, host_of(model))
    return Asker(model, processor, name if adapter is None else f"{name} + {adapter}", learned)


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
