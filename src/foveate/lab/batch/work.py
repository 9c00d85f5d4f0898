"""The work: every record of a file that has no answer yet, in batches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from foveate.errors import in_lines
from foveate.handle import compress, host_of
from foveate.lab import cautions, records, terminal
from foveate.lab.asker import Asker
from foveate.lab.batch import engine
from foveate.lab.batch.answering import Asked, ask
from foveate.lab.batch.answers import Answers
from foveate.lab.chats import Frames
from foveate.lab.checks import check_answers, check_in_one_folder
from foveate.lab.devices import device_of, put
from foveate.lab.loading import load
from foveate.lab.records import Record
from foveate.lab.terminal import CommandError
from foveate.method import Method

#: How many batches vLLM gets at a time: it fills its own, and answers are on the disk when all of these are there.
FILL = 32


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        data: a file that `records` reads.
        out: the file of answers.
        model: a folder, an id on the Hugging Face hub, or the name of a reference model (``reference``).
        method: what to attach; or a folder or hub id of what `Handle.save_pretrained` or ``foveate train`` wrote.
        batch_size: records at once; vLLM, which makes batches by itself, gets `FILL` times as many at a time.
        dtype, device, attn: as for one question.
        max_new_tokens: length of an answer at most.
        frames: of a video at most.
        overwrite: begin anew, whatever is in ``out``.
        engine: ``transformers``, or ``vllm``.
        engine_args: further options of vLLM, as words of ``vllm serve``.
    """

    data: Path
    out: Path
    model: str
    method: Method | str
    batch_size: int = 8
    dtype: str = "auto"
    device: str = "auto"
    attn: str | None = None
    max_new_tokens: int = 64
    frames: int = 32
    overwrite: bool = False
    engine: str = "transformers"
    engine_args: str = ""

    def check(self) -> None:
        """Raise `CommandError` for what does not go together."""
        vllm = self.engine == "vllm"
        if not vllm and self.engine_args:
            raise CommandError("--engine-args are options of vLLM: add --engine vllm, or leave them out")
        if vllm and isinstance(self.method, str):
            raise CommandError("--adapter has learned parts, which --engine vllm does not load: leave one of them out")
        if vllm:
            check_in_one_folder(self.model)
        for option, value, default in (("--device", self.device, "auto"), ("--attn", self.attn, None)):
            if vllm and value != default:
                raise CommandError(f"{option} is of transformers: with --engine vllm, --engine-args says such things")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the answers."""
        method = self.method if isinstance(self.method, str) else self.method.to_dict()
        own = {"model": self.model, "method": method, "dtype": self.dtype, "attn": self.attn}
        own |= {"engine": self.engine, "engine_args": self.engine_args}
        return json.loads(json.dumps({**own, "new_tokens": self.max_new_tokens, "frames": self.frames}))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Result:
    """What came out of this call.

    Attributes:
        request: what was asked for.
        total: records in the file; ``before``: had an answer already.
        answered, failed: of the others.
        tokens: generated.
        seconds: from the first record to the last, reading included, loading the model not.
        wrong: number of the line, and why, of every record that failed when it was asked.
    """

    request: Request
    total: int
    before: int
    answered: int
    failed: int
    tokens: int
    seconds: float
    wrong: tuple[tuple[int, str], ...]


def run(request: Request, tell: Callable[[str, float], None], warn: Callable[[str], None]) -> Result:
    """Answer what has no answer yet. ``tell`` gets what happens and the share that is done, ``warn`` what to know before."""
    request.check()
    everything = records.read(request.data)
    check_answers(request.out, request.data)
    device = device_of(request.device)
    answers = Answers(request.out, request.settings, everything, request.overwrite)
    todo = [record for record in everything if record.id not in answers.done]
    before = len(everything) - len(todo)
    if not todo:
        return Result(request, len(everything), before, 0, 0, 0, 0.0, ())
    if texts := [record.id for record in todo if not record.error and record.media == (False, False)]:
        warn(
            f"{len(texts)} of {len(todo)} records have no image or video and are asked as text alone; the first: {texts[0]}"
        )
    lines = {record.id: record.line for record in todo}
    known = {record.id: record.error for record in todo if record.error}
    if known:
        said = in_lines(request.data, [(lines[name], error) for name, error in known.items()])
        warn(f"{said}\n{'they get' if len(known) > 1 else 'it gets'} an error in place of an answer")
    tell(f"loading {request.model}", before / len(everything))
    frames, answered, failed, tokens = Frames(request.frames), 0, 0, 0
    wrong: list[tuple[int, str]] = []
    vllm = request.engine == "vllm"
    with _in_vllm(request) if vllm else _in_transformers(request, device, todo, warn) as asker:
        start = time.perf_counter()
        for batch in batches(todo, request.batch_size * (FILL if vllm else 1), apart=not vllm):
            found = ask(asker, batch, request.max_new_tokens, frames)
            answers.add(found)
            for answer in found:
                if answer.error and answer.id not in known:
                    wrong.append((lines[answer.id], answer.error))
                failed += bool(answer.error)
                answered += not answer.error
                tokens += answer.tokens
            done, rate = before + answered + failed, (answered + failed) / (time.perf_counter() - start)
            tell(f"{done} of {len(everything)} records, {rate:.1f} rows/s", done / len(everything))
        seconds = time.perf_counter() - start
    answers.sort(record.id for record in everything)
    return Result(request, len(everything), before, answered, failed, tokens, seconds, tuple(sorted(wrong)))


@contextmanager
def _in_transformers(
    request: Request, device: torch.device, todo: Sequence[Record], warn: Callable[[str], None]
) -> Iterator[Asked]:
    """The model in this process, with the method attached."""
    model, processor = load(request.model, request.dtype, request.attn)
    put(model, device, request.model)
    for line in cautions.about_model(request.model, model, processor, [record.text for record in todo]):
        warn(line)
    asker = Asker(model, processor, request.model)
    with compress(model, request.method) as handle:
        videos = any(record.media[1] for record in todo if not record.error)
        for line in cautions.about_methods(request.model, [handle.method], host_of(model), videos):
            warn(line)
        yield asker


def _in_vllm(request: Request) -> AbstractContextManager[Asked]:
    """The model in an engine."""
    assert isinstance(request.method, Method), "Request.check refuses others"
    return engine.opened(request.model, request.method, request.dtype, request.engine_args)


def batches(todo: Sequence[Record], size: int, apart: bool = True) -> list[list[Record]]:
    """Records in their order, but ``apart`` those with images from those with videos, as processors want alike rows."""
    kinds = dict.fromkeys(record.media for record in todo)
    alike = [[record for record in todo if record.media == kind] for kind in kinds] if apart else [list(todo)]
    return [group[start : start + size] for group in alike for start in range(0, len(group), size)]


def to_dict(result: Result) -> dict[str, Any]:
    """Plain data."""
    return {
        **result.request.settings,
        "data": str(result.request.data),
        "out": str(result.request.out),
        "records": result.total,
        "answered_before": result.before,
        "answered": result.answered,
        "failed": result.failed,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "rows_per_second": _rate(result.answered, result),
        "tokens_per_second": _rate(result.tokens, result),
    }


def show(result: Result, console: Console) -> None:
    """The counts for a person."""
    before = f", {result.before} were there" if result.before else ""
    failed = f", [red]{result.failed} failed[/red]" if result.failed else ""
    console.print(f"records         {result.total}: {result.answered} answered{before}{failed}")
    if result.answered:
        rows, tokens = _rate(result.answered, result), _rate(result.tokens, result)
        console.print(f"throughput      {rows:.2f} rows/s, {tokens:.1f} tokens/s ({result.seconds:.1f} s)")
    console.print(f"answers         {escape(str(result.request.out))}", soft_wrap=True)
    if result.failed:
        said = f"{in_lines(result.request.data, result.wrong)}\n" if result.wrong else ""
        terminal.note(
            f"{said}mend what is wrong; the same command asks again what failed (`error` in the answers says why)"
        )


def _rate(count: int, result: Result) -> float:
    return count / result.seconds if result.seconds else 0.0
