"""Commands that compare methods with the stock model: ``eval``, ``leaderboard``, ``bench`` and ``tune``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from foveate.lab import checks, terminal, words
from foveate.lab.bench.request import Request as Bench
from foveate.lab.bench.request import check as check_bench
from foveate.lab.evaluation.request import Fidelity, Reference, Tasks
from foveate.lab.evaluation.tune.request import Tune
from foveate.lab.leaderboard.request import Board
from foveate.lab.typed import with_options_of

Q = TypeVar("Q", Reference, Board)
R = TypeVar("R", Reference, Tasks, Fidelity, Tune)


@with_options_of(Reference)
def reference(request: Reference, json: bool) -> None:
    """Measure accuracy on questions that the reference models can answer, next to an oracle and controls."""
    request.check()
    if request.plan:
        terminal.note(request.says())
        from foveate.lab.evaluation import planning

        _planned(planning.plan, request, json)
        return
    from foveate.lab.evaluation import reference as face

    _measured(face.evaluate, request, json)


@with_options_of(Board)
def leaderboard(request: Board, json: bool) -> None:
    """Compare all methods at equal measured cost, on the reference benchmark, in two rounds, and write a page that ranks them.

    With --method, only these are measured, beside the controls; other rows in the folder stay.
    """
    request.check()
    if request.plan:
        terminal.note(request.says())
    from foveate.lab.evaluation.store import JSON
    from foveate.lab.leaderboard import board, page, rounds

    if request.plan:
        _planned(rounds.plan, request, json)
        return
    written = []
    if request.source:
        boards = list(map(board.read, request.source))
        board.check_together(boards)
        request.check()  # again: a page may have been written meanwhile
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
    """Measure accuracy on public benchmarks, which lmms-eval asks and scores."""
    request.check()
    from foveate.lab.evaluation.lmms.run import evaluate

    _measured(evaluate, request, json)


@with_options_of(Fidelity)
def fidelity(request: Fidelity, json: bool) -> None:
    """Measure how far methods change what the model would say next, on your images or the benchmark's; no labels are needed."""
    request.check()
    from foveate.lab.evaluation.fidelity.measuring import measure

    _measured(measure, request, json)


@with_options_of(Tune)
def tune(request: Tune, json: bool) -> None:
    """Search the layer, options or schedule with which a method changes answers least; no labels are needed."""
    request.check()
    from foveate.lab.evaluation.tune import tuning

    _measured(tuning.tune, request, json)


@with_options_of(Bench)
def bench(request: Bench, json: bool) -> None:
    """Measure time and memory of the stock model and of methods, in turn, for several sizes of prompts and batches."""
    methods = request.methods, request.options, request.described, (checks.DENSE,)
    checks.check_all(
        *(partial(words.check_many, *methods, share) for share in request.keeps or (None,)),
        lambda: check_bench(request),
    )
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
