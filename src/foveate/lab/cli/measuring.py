"""Commands that compare methods with the stock model: ``eval``, ``leaderboard``, ``bench`` and ``tune``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from foveate.lab import checks, completion, terminal, words
from foveate.lab.evaluation.request import Fidelity, Reference, Tasks, Tune
from foveate.lab.leaderboard.request import Board
from foveate.lab.typed import (
    MACHINE,
    METHODS,
    OUTPUT,
    QUESTIONS,
    Attn,
    Device,
    Dtype,
    Json,
    ManyAsJson,
    NewTokens,
    OptionsOfMany,
    Overwrite,
    with_options_of,
)

Q = TypeVar("Q", Reference, Board)
R = TypeVar("R", Reference, Tasks, Fidelity, Tune)


@with_options_of(Reference)
def reference(request: Reference, json: bool) -> None:
    """Accuracy on questions that the reference models can answer, beside an oracle and controls."""
    request.check()
    from foveate.lab.evaluation import reference as face

    if not request.plan:
        _measured(face.evaluate, request, json)
        return
    _planned(face.plan, request, json)


@with_options_of(Board)
def leaderboard(request: Board, json: bool) -> None:
    """All methods at equal measured cost, on the reference benchmark, in two rounds; and a page that ranks them."""
    request.check()
    from foveate.lab.evaluation.store import JSON
    from foveate.lab.leaderboard import board, page, rounds

    if request.plan:
        _planned(rounds.plan, request, json)
        return
    written = []
    if request.source:
        boards = list(map(board.read, request.source))
        board.check_together(boards)
    else:
        terminal.quiet_libraries()
        with terminal.Bar() as bar:
            boards = [rounds.measure(request, bar.tell)]
        written = [request.out / JSON]
    written.append(page.write(boards, request.out))
    if json:
        terminal.emit([each.to_dict() for each in boards])
    else:
        page.show(boards, written, terminal.out)


@with_options_of(Tasks)
def tasks(request: Tasks, json: bool) -> None:
    """Accuracy on public benchmarks, asked and scored by lmms-eval."""
    request.check()
    from foveate.lab.evaluation.lmms.run import evaluate

    _measured(evaluate, request, json)


@with_options_of(Fidelity)
def fidelity(request: Fidelity, json: bool) -> None:
    """How far methods move next-token distributions, without labels: on your images, or the reference benchmark's."""
    request.check()
    from foveate.lab.evaluation.fidelity.measuring import measure

    _measured(measure, request, json)


@with_options_of(Tune)
def tune(request: Tune, json: bool) -> None:
    """Search a method's layer, options or schedule, by fidelity: no labels are needed."""
    request.check()
    from foveate.lab.evaluation.tune import tuning

    _measured(tuning.tune, request, json)


def bench(
    tokens: Annotated[
        list[int] | None,
        typer.Option(
            help="Visual tokens of a row, about; repeatable.",
            show_default="256, 1024, 4096",
            rich_help_panel=QUESTIONS,
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            "--batch-size", "-b", help="Rows of a call; repeatable.", show_default="1", rich_help_panel=QUESTIONS
        ),
    ] = None,
    new_tokens: NewTokens = 16,
    steps: Annotated[
        int,
        typer.Option(help="Pairs of single steps, stock and method in turn; 0: none.", rich_help_panel=QUESTIONS),
    ] = 16,
    repeats: Annotated[
        int,
        typer.Option(help="Rounds in which the stock model and every method run once.", rich_help_panel=QUESTIONS),
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of weights, pixels and order.", rich_help_panel=QUESTIONS)] = 0,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-M",
            help="A method, such as luvc (`foveate methods` lists all), or a sum; repeatable.",
            show_default="three controls, luvc, ipcv, adsc",
            rich_help_panel=METHODS,
            autocompletion=completion.a_method(checks.DENSE),
        ),
    ] = None,
    keep: Annotated[
        list[float] | None,
        typer.Option("--keep", "-k", help="Each method at this share of tokens; repeatable.", rich_help_panel=METHODS),
    ] = None,
    option: OptionsOfMany = None,
    method_json: ManyAsJson = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Random weights in this shape, e.g. qwen2.5-vl-7b; repeatable.",
            show_default="small-qwen2.5-vl",
            rich_help_panel=MACHINE,
            autocompletion=completion.among(*checks.SHAPES),
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A real model: folder or hub id; repeatable.",
            rich_help_panel=MACHINE,
            autocompletion=completion.a_model,
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attn = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="JSON of every measurement; a run stopped there goes on.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("bench.json"),
    source: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: show this JSON.", rich_help_panel=OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the sweep into this file (.png, .pdf or .svg).", rich_help_panel=OUTPUT),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write the tables into this file, as Markdown.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure time and memory of the stock model and of methods, in turn, over visual tokens, batch and keep."""
    shares: list[float | None] = [*keep] if keep else [None]
    for share in shares:
        words.check_many(method or [], option or [], method_json or [], (checks.DENSE,), share)
    from foveate.lab.bench.request import Request, check

    request = Request(
        out,
        shapes=tuple(shape or ()),
        models=tuple(model or ()),
        methods=tuple(method or ()),
        keeps=tuple(keep or ()),
        options=tuple(option or ()),
        described=tuple(method_json or ()),
        tokens=tuple(tokens or ()),
        batches=tuple(batch_size or ()),
        repeats=repeats,
        new_tokens=new_tokens,
        steps=steps,
        dtype=dtype,
        device=device,
        attn=attn,
        seed=seed,
        source=source,
        plot=plot,
        table=table,
        overwrite=overwrite,
    )
    check(request)
    from foveate.lab.bench import show, sweep

    terminal.quiet_libraries()
    with terminal.Bar() as bar:
        found = sweep.run(request, bar.tell)
    written = show.write(found, request)
    if json:
        terminal.emit(found.to_dict())
    else:
        show.show(found, written, terminal.out)


def _planned(plan: Callable[[Q, Callable[[str, float], None]], Any], request: Q, json: bool) -> None:
    """Say what would be asked, and how long it takes."""
    terminal.quiet_libraries()
    with terminal.Bar() as bar:
        found = plan(request, bar.tell)
    if json:
        terminal.emit(found.to_dict())
        return
    for line in terminal.aligned(found.table()):
        terminal.out.print(line, markup=False, soft_wrap=True)
    terminal.out.print(str(found), markup=False, soft_wrap=True)


def _measured(evaluate: Callable[[R, Callable[[str, float], None]], Any], request: R, json: bool) -> None:
    """Measure, write the report into the folder of the run, and show it."""
    from foveate.lab.evaluation import report

    terminal.quiet_libraries()
    with terminal.Bar() as bar:
        found = evaluate(request, bar.tell)
    if found is None:  # another process of accelerate has it
        return
    written = report.write(found)
    if json:
        terminal.emit(found.to_dict())
    else:
        report.show(found.report(), written, terminal.out)
