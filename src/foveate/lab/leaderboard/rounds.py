"""Two rounds of questions by the evaluation of the reference benchmark, and times by the bench: what a leaderboard is made of.

In the first round all methods answer a few questions at every budget; in the second one the best, and the controls, answer
others besides. All is kept in one folder, per method and budget, so that what was measured once is not measured again.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from foveate.errors import FoveateError
from foveate.lab import needs, outputs, typed
from foveate.lab.checks import ANTIORACLE, BOUNDS
from foveate.lab.evaluation import planning, reference, statistics, store
from foveate.lab.evaluation.best import BESIDE, CONTROLS, best_of
from foveate.lab.evaluation.forecast import Forecast, Line
from foveate.lab.evaluation.plan import Entry, shipped
from foveate.lab.evaluation.request import Reference
from foveate.lab.evaluation.results import Question, Spent, counted, right_or_wrong
from foveate.lab.evaluation.runner import Tell
from foveate.lab.evaluation.statistics import Floats
from foveate.lab.leaderboard.board import Compared, Kind, Leaderboard, Missed, Row, check_same, read
from foveate.lab.leaderboard.request import PAGE, Board
from foveate.lab.leaderboard.speed import Timer, said
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError
from foveate.lab.words import options_by_method
from foveate.method import Host
from foveate.methods import list_methods
from foveate.signal import OF_ATTENTION
from foveate.site import Place

#: All that a leaderboard leaves in its folder.
WRITTEN = (*store.WRITTEN, PAGE, "speed/*.json", "trained/*")


def measure(request: Board, tell: Tell) -> Leaderboard:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then.
    """
    request.check()
    if request.overwrite:
        outputs.clear(request.out, WRITTEN)
    board = _there(request)
    first, notes = _first(request, tell)
    for ask in first:
        board = _asked(ask, board, request, tell)
    assert board is not None  # there is a budget
    board.notes = board.notes if request.methods or request.described else notes
    for adapter in request.adapters:
        for ask in _trained(request, adapter):
            board = _asked(ask, board, request, tell)
    if request.best:
        for ask in _second(request, board):
            board = _asked(ask, board, request, tell)
        board.write(request.out)
        if request.repeats:
            _time(request, board, tell)
    board.write(request.out)
    return board


def plan(request: Board, tell: Tell) -> Forecast:
    """What would be asked in both rounds, and how long it takes here. The second round is guessed before the first is done.

    Nothing is measured of methods, and nothing is written.
    """
    request.check()

    def planned(asks: Sequence[Reference]) -> Forecast:
        return planning.plan_all([replace(ask, overwrite=request.overwrite) for ask in asks], tell)

    board = None if request.overwrite else _there(request)
    found = first = planned(_first(request, tell)[0])
    for adapter in request.adapters:
        found += planned(_trained(request, adapter))
    if not request.best:
        return found
    if board is not None and not any(line.left for line in first.lines):
        return found + planned(_second(request, board))
    each = [line.seconds / line.left for line in first.lines if line.left]
    budgets, tasks = sum(map(len, request.budgets.values())), request.tasks or needs.reference().TASKS
    left = (request.best + len(BESIDE)) * budgets * request.more * request.per_task * len(tasks)
    return found + Forecast((Line("second round", "", left, left * sum(each) / max(1, len(each))),))


def _first(request: Board, tell: Tell) -> tuple[list[Reference], tuple[str, ...]]:
    """What the first round asks, and which methods were left out, and why."""
    if request.options and not request.methods:
        raise CommandError(f"--option {request.options[0]!r} belongs to a method: say --method, too")
    beside = (*BESIDE, ANTIORACLE)
    named = [name for name in request.methods if name not in (*BOUNDS, *CONTROLS)]
    described = [
        json.dumps(method_from_words(name, None, own, None).to_dict())
        for name, own in zip(named, options_by_method(named, request.options))
    ]
    described += request.described
    notes: list[str] = []
    if not (request.methods or request.described):
        tell("looking which methods fit", 0.0)
        asker = reference.load_subject(request.model)
        fit, notes = shipped(asker, asker.speech.longest)
        described = [json.dumps(each.to_dict()) for each in fit if each.name() not in CONTROLS]
    asks = _asks(request, request.seeds[:1], methods=beside, described=tuple(described))
    return asks, tuple(notes)


def _second(request: Board, board: Leaderboard) -> list[Reference]:
    """What the second round asks: the questions of the first, which are answered already, and others."""
    rows = [row for row in board.to_dict()["rows"] if row["kind"]["training"] != "trained"]
    best = tuple(map(json.dumps, best_of(rows, request.best)))
    return _asks(request, request.seeds, methods=BESIDE, described=best)


def _trained(request: Board, adapter: str) -> list[Reference]:
    """What a trained method is asked: the questions of both rounds."""
    folder = request.out / "trained" / store.file_stem(adapter)
    return [replace(ask, out=folder, adapter=adapter) for ask in _asks(request, request.seeds)]


def _asks(request: Board, seeds: tuple[int, ...], **which: tuple[str, ...]) -> list[Reference]:
    """An evaluation for each kind of cost; all keep their answers in one folder."""
    return [
        Reference(
            request.out,
            model=request.model,
            budgets=budgets,
            by=by,
            tasks=request.tasks,
            per_task=request.per_task,
            seeds=seeds,
            **which,  # type: ignore[arg-type]
        )
        for by, budgets in request.budgets.items()
        if budgets
    ]


def _there(request: Board) -> Leaderboard | None:
    """What the folder has."""
    return read(request.out) if (request.out / store.JSON).exists() else None


def _asked(ask: Reference, board: Leaderboard | None, request: Board, tell: Tell) -> Leaderboard:
    """The rows of an evaluation, among those that are there; they are in the folder when this is done."""
    with reference.running(ask, tell) as run:
        ground = run.ground
        common = {**ground.identity, "model": ground.asker.name, "seed": request.seed}
        if board is None:
            groups = {group: tuple(t for t in tasks if t in common["tasks"]) for group, tasks in _groups().items()}
            board = Leaderboard("", common, {group: tasks for group, tasks in groups.items() if tasks})
        elif ask.adapter is None:  # a model with an adapter has other weights
            check_same(request.out / store.JSON, board.common, common)
        questions, answers = run.answered(tell)
        tell("adding up", 1.0)
        rows, stock = [], run.entries[0]
        for entry in run.entries:
            keys = counted(entry, questions)
            if not keys or (ask.adapter is not None and entry.method is None):
                continue
            about = [questions[key] for key in keys]
            mine, theirs = (right_or_wrong(answers[each], keys) for each in (entry, stock))
            rows.append(
                Row(
                    entry.label if ask.adapter is None else f"{entry.label} [{Path(ask.adapter).name}]",
                    None if entry.budget is None else ask.by,
                    entry.budget,
                    None if entry.method is None else entry.method.to_dict(),
                    _kind(entry, ground.asker.host, ask.adapter is not None),
                    ask.seeds,
                    _compared(about, mine, theirs),
                    _by_group(board.groups, about, mine, theirs),
                    Spent.over(answers[entry][key].cost for key in keys),
                    _command(ask, entry),
                )
            )
        board.add(rows, [Missed(each.label, ask.by, each.budget, each.closest) for each in run.missed])
    board.command = typed.command("foveate leaderboard", request)
    board.write(request.out)
    return board


def _groups() -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = needs.reference().GROUPS
    return groups


def _by_group(
    groups: dict[str, tuple[str, ...]], about: Sequence[Question], mine: Floats, stock: Floats
) -> dict[str, Compared]:
    """The same of each group of tasks that there are questions of."""
    found = {}
    for name, tasks in groups.items():
        places = [place for place, question in enumerate(about) if question.task in tasks]
        if places:
            found[name] = _compared([about[place] for place in places], mine[places], stock[places])
    return found


def _compared(about: Sequence[Question], mine: Floats, stock: Floats) -> Compared:
    tasks = [question.task for question in about]
    return Compared(statistics.macro(tasks, mine), statistics.difference(tasks, mine, stock))


def _kind(entry: Entry, host: Host, trained: bool) -> Kind:
    if entry.method is None or entry.label in BOUNDS:
        return Kind("bound", (), False, "free")
    parts, sites = entry.method.parts(), entry.method.sites(host)
    places = {site.at for site in sites if site.action != "remember"}
    return Kind(
        "control" if all(part.control for part in parts) else "method",
        tuple(place for place in get_args(Place) if place in places),
        any(signal.kind in OF_ATTENTION for site in sites for signal in site.asked),
        "trained" if trained else "free" if all(part.training_free for part in parts) else "untrained",
    )


def _command(ask: Reference, entry: Entry) -> str:
    """What asks an entry alone the same questions."""
    budgets = () if entry.budget is None else (entry.budget,)
    alone = replace(ask, methods=(), described=(), budgets=budgets)
    if ask.adapter is not None:
        return typed.command("foveate eval reference", alone)
    if entry.method is None or entry.label in BOUNDS or entry.label in list_methods():
        return typed.command("foveate eval reference", replace(alone, methods=(entry.label,)))
    return typed.command("foveate eval reference", replace(alone, described=(json.dumps(entry.method.to_dict()),)))


def _time(request: Board, board: Leaderboard, tell: Tell) -> None:
    """Time the methods of the second round that were not timed yet."""
    if board.shape != said(request):
        board.shape, board.rows = said(request), {key: replace(row, speed=None) for key, row in board.rows.items()}
    timer, methods = Timer(request), dict[str, list[Row]]()
    for row in board.rows.values():
        again = row.budget is not None and len(row.seeds) >= len(request.seeds)
        if again and row.speed is None and row.kind.role != "bound":
            methods.setdefault(row.label, []).append(row)
    notes = []
    gc.collect()
    gc.freeze()  # garbage is collected before each call that is timed: what the questions have left is not gone through again
    for number, (label, rows) in enumerate(methods.items()):
        tell(f"timing {label}", number / len(methods))
        try:
            speeds = timer(rows)
        except FoveateError as error:
            notes.append(f"not timed: {error}")
            continue
        for row in rows:
            if row.by is not None and row.budget is not None:
                board.rows[row.key] = replace(row, speed=speeds.get((row.by, row.budget)))
        board.write(request.out)
    gc.unfreeze()
    board.notes = tuple(dict.fromkeys((*board.notes, *notes)))
