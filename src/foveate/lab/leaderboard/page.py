"""The page: a table of all rows, whole without a script; with one, columns sort and rows can be chosen.

All text is escaped here, and the page's own policy lets no script but its own run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console

from foveate.lab import standalone
from foveate.lab.bench.summary import Spread
from foveate.lab.checks import DENSE
from foveate.lab.evaluation.statistics import Share
from foveate.lab.leaderboard.board import Compared, Kind, Leaderboard, Missed, Row
from foveate.lab.leaderboard.request import PAGE
from foveate.lab.terminal import aligned

COUNTED = {"flops": "FLOPs", "kv": "KV bytes"}
TRAINING = {"free": "training-free", "untrained": "not trained, though its paper trains", "trained": "trained"}


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, smaller below it what it lies between, and what it sorts by; None: it sorts last."""

    text: str
    small: str = ""
    sort: float | str | None = None


@dataclass(frozen=True)
class Place:
    """Where a row stands among those of its model, at its cost and budget.

    Attributes:
        rank: from 1 on; None: it knows the answers, or is the stock model.
        against: whether its interval is above or below the best control; "": nothing to say.
    """

    rank: int | None
    against: str


def write(boards: Sequence[Leaderboard], folder: Path) -> Path:
    """The page of one or several models, in a folder."""
    return standalone.write(folder / PAGE, render(boards))


def render(boards: Sequence[Leaderboard]) -> str:
    """The page as text."""
    heads = _heads(boards)
    return standalone.render(
        "foveate.lab.leaderboard",
        "board",
        ("board.js",),
        models=escape(", ".join(board.model for board in boards)),
        facts="\n".join(f"<li>{_facts(board)}</li>" for board in boards),
        notes="\n".join(f"<li>{escape(f'{board.model}: {note}')}</li>" for board in boards for note in board.notes),
        filters="\n".join(_filters(boards)),
        heads="".join(f'<th scope="col" title="{escape(says)}">{escape(name)}</th>' for name, says in heads.items()),
        rows="\n".join(row for board in boards for row in _rows(board, heads)),
    )


def places(board: Leaderboard) -> dict[tuple[str, str | None, float | None], Place]:
    """Of every row."""
    found = {}
    for by, budget in dict.fromkeys((row.by, row.budget) for row in board.rows.values()):
        here = [row for row in board.rows.values() if (row.by, row.budget) == (by, budget)]
        controls = [row.whole.accuracy.value for row in here if row.kind.role == "control"]
        rank = 0
        for row in sorted(here, key=_best_first):
            if row.kind.role == "bound" or row.budget is None:
                found[row.key] = Place(None, "")
                continue
            rank += 1
            against = "" if row.kind.role == "control" or not controls else _against(row.whole.accuracy, max(controls))
            found[row.key] = Place(rank, against)
    return found


def show(boards: Sequence[Leaderboard], written: Sequence[Path], console: Console) -> None:
    """The ranks at every budget, and where the page is, for a person."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    for board in boards:
        at = places(board)
        for by, budget in dict.fromkeys((row.by, row.budget) for row in board.rows.values() if row.by is not None):
            say(f"{board.model}, {COUNTED[str(by)]} {budget}", "bold")
            lines: list[Sequence[str]] = [("method", "rank", "accuracy", "against stock", "against controls", "speed")]
            for row in sorted(board.rows.values(), key=_best_first):
                if (row.by, row.budget) == (by, budget):
                    place, speed = at[row.key], "" if row.speed is None else f"{row.speed.stock.median:.2f}x"
                    said = (f"{100 * row.whole.accuracy.value:.1f}", f"{100 * row.whole.difference.value:+.1f}")
                    lines.append((row.label, str(place.rank or "-"), *said, place.against or "-", speed or "-"))
            for line in aligned(lines):
                say(line)
            say("")
        for missed in board.missed.values():
            say(
                f"{missed.label} cannot spend {missed.budget} of {COUNTED[missed.by]}: closest {missed.closest:.2f}",
                "dim",
            )
        for note in board.notes:
            say(note, "dim")
    say("written: " + ", ".join(map(str, written)))


def _heads(boards: Sequence[Leaderboard]) -> dict[str, str]:
    """Columns, and what each says; the middle ones are groups of tasks."""
    groups = {name.capitalize(): ", ".join(tasks) for board in boards for name, tasks in board.groups.items()}
    return {
        "Rank": "among methods and controls, by accuracy, at this cost and budget",
        "Method": "",
        "Model": "",
        "Cost": "what the budget counts",
        "Budget": "share of what the stock model spends",
        "Spent FLOPs": "of the whole call, measured, over the stock model's",
        "Spent KV": "bytes of the cache, measured, over the stock model's",
        "Accuracy": "mean over tasks, in %, and its 95 % interval",
        "Against stock": "accuracy minus the stock model's on the same questions, and its 95 % interval",
        "Against controls": "whether the interval of the accuracy is clear of the best of Random, Stride and Downsample",
        **groups,
        "Speed": "how many times as fast as the stock model to the first token, and quartiles of the rounds",
        "Speed / Stride": "how many times as fast as Stride at this budget, in the same rounds",
        "Acts": "where",
        "Attention": "whether it reads attention weights, which fused kernels do not give",
        "Training": "",
        "Questions": "",
    }


def _rows(board: Leaderboard, heads: Iterable[str]) -> Iterable[str]:
    """Those without a budget first, then cost by cost, the largest budget first, the best first."""
    at, by = places(board), [None, *COUNTED]
    rows: list[Row | Missed] = [*board.rows.values(), *board.missed.values()]
    for row in sorted(rows, key=lambda row: (by.index(row.by), -(row.budget or 0), _best_first(row))):
        kind = next((each.kind for each in board.rows.values() if each.label == row.label), None)
        cells, commands = _entry(board, row, kind), list[str]()
        role = "missed" if kind is None or isinstance(row, Missed) else kind.role
        if isinstance(row, Missed):
            cells["Accuracy"] = Cell(f"closest {row.closest:.2f}")
        else:
            cells |= _found(row, at[row.key])
            commands = [row.command] if row.speed is None else [row.command, row.speed.command]
        yield f'<tr class="{role}"{_chosen_by(board, row, kind)}>{_line(heads, cells)}<td>{_shown(commands)}</td></tr>'


def _entry(board: Leaderboard, row: Row | Missed, kind: Kind | None) -> dict[str, Cell]:
    """What is known of a method without asking it."""
    cells = {
        "Method": Cell(row.label, "" if kind is None or kind.role == "method" else kind.role, row.label),
        "Model": Cell(board.model, sort=board.model),
        "Cost": Cell(COUNTED.get(row.by or "", ""), sort=row.by),
        "Budget": Cell(_short(row.budget), sort=row.budget),
    }
    if kind is not None and kind.role != "bound":
        acts = ", ".join(kind.acts)
        cells |= {"Acts": Cell(acts, sort=acts or None), "Training": Cell(TRAINING[kind.training], sort=kind.training)}
        cells |= {"Attention": Cell("reads it", sort="reads it") if kind.attention else Cell("")}
    return cells


def _found(row: Row, place: Place) -> dict[str, Cell]:
    """What its answers say, and its times."""
    speed, accuracy = row.speed, row.whole.accuracy
    return {
        "Rank": Cell("" if place.rank is None else str(place.rank), sort=place.rank),
        "Spent FLOPs": Cell(f"{row.spent.flops:.2f}", sort=row.spent.flops),
        "Spent KV": Cell(f"{row.spent.kv:.2f}", sort=row.spent.kv),
        "Accuracy": Cell(f"{100 * accuracy.value:.1f}", _interval(accuracy, "{:.1f}"), accuracy.value),
        "Against stock": Cell("") if row.label == DENSE else _difference(row.whole.difference),
        "Against controls": Cell(place.against, sort=place.against or None),
        **{name.capitalize(): _group(group, row.label == DENSE) for name, group in row.groups.items()},
        "Speed": _ratio(None if speed is None else speed.stock),
        "Speed / Stride": _ratio(None if speed is None else speed.stride),
        "Questions": Cell(f"{accuracy.n:,}", sort=accuracy.n),
    }


def _line(heads: Iterable[str], cells: Mapping[str, Cell]) -> str:
    shown = []
    for name in heads:
        cell, tag, scope = cells.get(name, Cell("")), "td", ""
        if name == "Method":
            tag, scope = "th", ' scope="row"'
        sort = "" if cell.sort is None else f' data-sort="{escape(str(cell.sort))}"'
        small = f" <small>{escape(cell.small)}</small>" if cell.small else ""
        shown.append(f"<{tag}{scope}{sort}>{escape(cell.text)}{small}</{tag}>")
    return "".join(shown)


def _shown(commands: Sequence[str]) -> str:
    pres = "".join(f"<pre>{escape(text)}</pre>" for text in commands)
    return f"<details><summary>show</summary>{pres}</details>" if commands else ""


def _chosen_by(board: Leaderboard, row: Row | Missed, kind: Kind | None) -> str:
    """What the script compares with what is chosen above the table."""
    chosen = {"model": board.model, "by": row.by or "", "budget": _short(row.budget)}
    chosen |= dict.fromkeys(("acts", "training", "attention"), "")
    if kind is not None:
        chosen |= {"acts": " ".join(kind.acts), "training": _sort_of(kind)}
        chosen |= {"attention": "reads" if kind.attention else "not"}
    return "".join(f' data-{name}="{escape(value)}"' for name, value in chosen.items())


def _filters(boards: Sequence[Leaderboard]) -> Iterable[str]:
    """What rows can be chosen by. A page begins with one model at one cost and budget, where ranks mean something."""
    rows = [row for board in boards for row in board.rows.values()]
    by = [name for name in COUNTED if any(row.by == name for row in rows)]
    first = _budgets(row for row in rows if row.by in by[:1])
    there = {_sort_of(row.kind) for row in rows}
    kinds = {**TRAINING, "control": "controls", "bound": "bounds"}
    yield _select("Model", "model", {board.model: board.model for board in boards}, boards[0].model)
    yield _select("Cost", "by", {name: COUNTED[name] for name in by}, *by[:1])
    yield _select("Budget", "budget", {each: each for each in _budgets(rows)}, *first[len(first) // 2 :][:1])
    yield _select("Acts", "acts", {place: place for row in rows for place in row.kind.acts})
    yield _select("Kind", "training", {name: says for name, says in kinds.items() if name in there})
    yield _select("Attention", "attention", {"reads": "reads it", "not": "does not"})


def _budgets(rows: Iterable[Row]) -> list[str]:
    """The largest first."""
    return [_short(budget) for budget in sorted({row.budget for row in rows if row.budget is not None}, reverse=True)]


def _select(title: str, name: str, options: Mapping[str, str], chosen: str = "") -> str:
    words = ['<option value="">all</option>']
    for value, says in options.items():
        mark = " selected" if value == chosen else ""
        words.append(f'<option value="{escape(value)}"{mark}>{escape(says)}</option>')
    return f'<label>{title} <select name="{name}">{"".join(words)}</select></label>'


def _facts(board: Leaderboard) -> str:
    common, stock = board.common, next((row for row in board.rows.values() if row.label == DENSE), None)
    said = [
        f"{board.model}: {len(common['tasks'])} tasks of the {common['split']} split, {common['per_task']} questions each."
    ]
    if stock is not None:
        accuracy = stock.whole.accuracy
        said.append(f"The stock model answers {100 * accuracy.value:.1f} % of {accuracy.n:,} questions.")
    cpus = sorted({row.speed.cpu for row in board.rows.values() if row.speed is not None})
    if cpus:
        said.append(f"Timed: {board.shape} ({'; '.join(cpus)}).")
    said.append(", ".join(f"{name} {number}" for name, number in common["versions"].items()) + ".")
    return f"{escape(' '.join(said))}<pre>{escape(board.command)}</pre>"


def _best_first(row: Row | Missed) -> tuple[float, str]:
    return (-row.whole.accuracy.value, row.label) if isinstance(row, Row) else (0.0, row.label)


def _against(accuracy: Share, control: float) -> str:
    return "above" if accuracy.above(control) else "below" if accuracy.below(control) else "level"


def _sort_of(kind: Kind) -> str:
    return kind.training if kind.role == "method" else kind.role


def _short(budget: float | None) -> str:
    return "" if budget is None else f"{budget:g}"


def _difference(share: Share) -> Cell:
    return Cell(f"{100 * share.value:+.1f}", _interval(share, "{:+.1f}"), share.value)


def _group(compared: Compared, stock: bool) -> Cell:
    """The accuracy; below it the interval, and of another model than stock the difference to that with its own."""
    accuracy, against = compared.accuracy, compared.difference
    difference = "" if stock else f"; {100 * against.value:+.0f} ({_interval(against, '{:+.0f}')})"
    return Cell(f"{100 * accuracy.value:.0f}", _interval(accuracy, "{:.0f}") + difference, accuracy.value)


def _interval(share: Share, form: str) -> str:
    return " to ".join(form.format(100 * value) for value in (share.low, share.high) if value is not None)


def _ratio(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell("")
    return Cell(f"{spread.median:.2f}×", f"{spread.low:.2f} to {spread.high:.2f}", spread.median)
