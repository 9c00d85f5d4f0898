"""The model classes that lmms-eval makes of ``--model foveate``: for any family, one question at a time or in batches.

lmms-eval has two interfaces. `Conversational` gets chats, and is what it takes; `Simple` gets a text and what is seen
with it, for tasks that score given choices (``--force_simple``).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from foveate.errors import ConfigError, FoveateError, InputError, first_line
from foveate.handle import compress
from foveate.lab.asker import Asker, load_asker
from foveate.lab.chats import Chat, Frames, chat, question
from foveate.lab.evaluation.lmms.memory import Memory, Note
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError
from foveate.lab.words import words_of
from foveate.trained import is_source

T = TypeVar("T")


class Simple(lmms):  # type: ignore[misc]
    """``pretrained=MODEL,method=NAME,keep=0.33,...``: every name that is not listed here is an option of the method."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "reference",
        method: str | None = None,
        method_json: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        attn_implementation: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
        max_num_frames: int = 32,
        fps: float | None = None,
        max_new_tokens: int = 1024,
        system_prompt: str | None = None,
        asker: Asker | None = None,
        memory: Memory | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            pretrained: a folder, an id on the Hugging Face hub, or the name of a reference model (``reference``).
            method: its name, or a sum, as ``--method`` of ``foveate run``; or folder or hub id of a trained one. None: the
                stock model.
            method_json: a file with the method instead.
            dtype, device, attn_implementation: as ``--dtype``, ``--device`` and ``--attn`` of ``foveate run``; with several
                processes each takes the device that accelerate gives it.
            batch_size: questions that are asked together at most.
            max_batch_size: nothing here depends on it, as a batch size is not searched for.
            max_num_frames, fps: frames of a video, see `foveate.lab.chats.Frames`.
            max_new_tokens: length of answers to tasks that do not say.
            system_prompt: before every chat, or a file of it.
            asker, memory: a model that is loaded already and answers that are known, from ``foveate eval``.
        """
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size = _whole("batch_size", batch_size)
        self.frames = Frames(_whole("max_num_frames", max_num_frames), None if fps is None else float(fps))
        self.max_new_tokens = _whole("max_new_tokens", max_new_tokens)
        self.system_prompt = self._resolve_system_prompt(system_prompt)
        self.memory = Memory() if memory is None else memory
        self._keeps = asker is not None
        if asker is None:
            asker = self._load(pretrained, dtype, device, attn_implementation, method, method_json, options)
        self._asker: Asker | None = asker
        self.device = asker.model.device

    def _load(
        self,
        pretrained: str,
        dtype: str,
        device: str | None,
        attn: str | None,
        method: str | None,
        described: str | None,
        options: dict[str, Any],
    ) -> Asker:
        chosen: Any = None
        if method is not None and any(is_source(part) for part in (method, *method.split("+"))):
            if options:
                raise ConfigError(f"{', '.join(options)}: the method in {method!r} has its options already")
            chosen = method
        elif method is not None or described is not None:
            chosen = method_from_words(method, None, words_of(options), described)
        elif options:
            raise CommandError(f"{', '.join(options)}: no such argument; an option of a method needs method=NAME, too")
        where = self.accelerator.device if self._world_size > 1 else device or "auto"
        asker = load_asker(str(pretrained), dtype, where, attn)
        if chosen is not None:
            asker.handle = compress(asker.model, chosen)
        return asker

    @property
    def asker(self) -> Asker:
        """The model and what is attached to it."""
        if self._asker is None:
            raise CommandError("this model has been cleaned away: make another one")
        return self._asker

    def clean(self) -> None:
        """lmms-eval has all answers: a judge may need the memory now."""
        if not self._keeps:
            self._asker = None
            gc.collect()
            torch.cuda.empty_cache()

    def chat(self, request: Any) -> Chat:
        """The conversation of a request.

        Raises:
            InputError: it cannot be made, or something in it cannot be seen; and which question it is.
        """
        which = f"question {request.doc_id} of the task {request.task_name!r}"
        try:
            return self._chat(request)
        except FoveateError as error:
            raise InputError(f"{which}: {error}") from None
        except Exception as error:  # of the task's own functions, or of the dataset that decodes an image
            raise InputError(f"{which} cannot be made: {type(error).__name__}: {first_line(error)}") from error

    def _chat(self, request: Any) -> Chat:
        text, _, visuals, doc, task, split = request.args
        seen = None if visuals is None else visuals(self.task_dict[task][split][doc])
        return chat(question(seen, text), self.frames, self.system_prompt)

    def options(self, request: Any) -> dict[str, Any]:
        """What the task says about generation."""
        return dict(request.args[1])

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answers, in the order of the requests."""

        def ask(chats: list[Chat], batch: list[Any]) -> list[Note]:
            answers = self.asker.generate(chats, self.options(batch[0]), self.max_new_tokens)
            return [Note(chat.name, one.text, one.tokens, 0.0, one.cost) for chat, one in zip(chats, answers)]

        # Those that can be generated together.
        notes = self._through(
            requests, lambda request: json.dumps(self.options(request), sort_keys=True, default=str), ask
        )
        return [GenerationResult(note.text, TokenCounts(output_tokens=note.tokens)) for note in notes]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """For each choice its mean loss, which lmms-eval takes the least of, and whether it is the likeliest text."""

        def ask(chats: list[Chat], batch: list[Any]) -> list[Note]:
            found = self.asker.loss(chats, [self._ending(request) for request in batch])
            return [
                Note(chat.name, "greedy" if greedy else "", 0, loss, cost)
                for chat, (loss, greedy, cost) in zip(chats, found)
            ]

        notes = self._through(requests, lambda request: "", ask)
        # lmms-eval 0.7.3 makes a string of a bare pair; what is wrapped it leaves alone.
        return [GenerationResult((note.loss, note.text == "greedy")) for note in notes]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported."""
        raise CommandError("tasks in which the model is asked again about its own answers are not supported by foveate")

    def _ending(self, request: Any) -> str:
        _, target, _, doc, task, split = request.args
        return str(target if isinstance(target, str) else target(self.task_dict[task][split][doc]))

    def _through(
        self,
        requests: Sequence[Any],
        kind: Callable[[Any], str],
        ask: Callable[[list[Chat], list[Any]], list[Note]],
    ) -> list[Note]:
        """A note for each request: what is known already, and the others in batches."""
        names = self.memory.names(requests)
        waiting: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            if self.memory.get(names[i]) is None:
                waiting.setdefault(kind(request), []).append(i)
        total = sum(map(len, waiting.values()))
        with tqdm(total=total, disable=self._rank != 0 or not total, desc="foveate") as bar:
            for places in waiting.values():
                for some in _chunks(places, self.batch_size):
                    chats = [replace(self.chat(requests[i]), name=names[i]) for i in some]
                    for rows in _alike(chats):
                        self.memory.add(ask([chats[row] for row in rows], [requests[some[row]] for row in rows]))
                        bar.update(len(rows))
        return [self.memory[name] for name in names]


class Conversational(Simple):
    """The same for tasks that speak in chats, which may have images between words, and several turns."""

    is_simple = False

    def _chat(self, request: Any) -> Chat:
        _, messages, _, doc, task, split = request.args
        return chat(messages(self.task_dict[task][split][doc]), self.frames, self.system_prompt)

    def options(self, request: Any) -> dict[str, Any]:
        return dict(request.args[2])


def _chunks(places: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _alike(chats: Sequence[Chat]) -> list[list[int]]:
    """Rows of a batch by what is seen in them."""
    groups: dict[tuple[bool, bool], list[int]] = {}
    for row, each in enumerate(chats):
        groups.setdefault(each.media, []).append(row)
    return list(groups.values())


def _whole(name: str, value: Any) -> int:
    if not str(value).isdigit() or int(value) < 1:
        raise ConfigError(f"{name}={value!r}: give a whole number, at least 1")
    return int(value)
