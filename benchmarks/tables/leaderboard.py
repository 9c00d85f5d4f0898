"""The leaderboard: a table of ranks, one by group of tasks, and the page that sorts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foveate.lab.evaluation.table import interval
from foveate.lab.leaderboard import page
from foveate.lab.leaderboard.board import Leaderboard, Row, of_dict
from foveate.methods import list_methods

from tables.cells import MODELS, table

#: Where methods are ordered, and shown by group.
ORDER = ("flops", 0.65)


def ranks(*results: dict[str, Any]) -> str:
    """Accuracy of every method at every budget, in brackets the difference to the stock model; bold: above every control."""
    return "\n\n".join(_ranks(of_dict(found)) for found in results)


def groups(*results: dict[str, Any]) -> str:
    """Accuracy by group of tasks where methods are ordered, with its interval."""
    return "\n\n".join(_groups(of_dict(found)) for found in results)


def html(*results: dict[str, Any]) -> str:
    """The page, as ``foveate leaderboard`` writes it."""
    return page.render([of_dict(found) for found in results])


def _ranks(board: Leaderboard) -> str:
    budgets = [(by, budget) for by in page.COUNTED for budget in _budgets(board, by)]
    at = page.places(board)

    def cell(label: str, by: str, budget: float) -> str:
        key = (label, by, budget)
        if key in board.missed:
            return f"closest {board.missed[key].closest:.2f}"
        if key not in board.rows:
            return ""
        whole = board.rows[key].whole
        said = f"{100 * whole.accuracy.value:.1f} ({100 * whole.difference.value:+.1f})"
        return f"**{said}**" if at[key].against == "above" else said

    def speed(label: str) -> str:
        row = board.rows.get((label, *ORDER))
        return "" if row is None or row.speed is None else f"{row.speed.stock.median:.2f}x"

    lines = [
        (_name(board, label), *(cell(label, *budget) for budget in budgets), speed(label)) for label in _ordered(board)
    ]
    heads = (f"{page.COUNTED[by]} {budget:g}" for by, budget in budgets)
    return f"{_head(board)}\n\n" + table(["", *heads, f"speed at FLOPs {ORDER[1]}"], lines)


def _groups(board: Leaderboard) -> str:
    rows = [board.rows.get((label, *ORDER)) for label in _ordered(board)]
    lines = [(_name(board, row.label), *_shares(board, row)) for row in [_stock(board), *rows] if row is not None]
    return f"{_head(board)}\n\n" + table(["", *board.groups], lines)


def _shares(board: Leaderboard, row: Row) -> Iterator[str]:
    for name in board.groups:
        share = row.groups[name].accuracy
        yield f"{100 * share.value:.0f} ({interval(share, '{:.0f}-{:.0f}')})"


def _stock(board: Leaderboard) -> Row:
    return board.rows["dense", None, None]


def _head(board: Leaderboard) -> str:
    right = 100 * _stock(board).whole.accuracy.value
    return f"**{MODELS.get(board.model, board.model)}**; the stock model answers {right:.1f} % rightly:"


def _budgets(board: Leaderboard, by: str) -> list[float]:
    return sorted({budget for _, other, budget in board.rows if other == by and budget is not None}, reverse=True)


def _ordered(board: Leaderboard) -> list[str]:
    """Labels with a budget, the best first; last those that cannot spend what they are ordered at."""

    def accuracy(label: str) -> float:
        row = board.rows.get((label, *ORDER))
        return 0.0 if row is None else row.whole.accuracy.value

    labels = dict.fromkeys(label for label, by, _ in (*board.rows, *board.missed) if by is not None)
    return sorted(labels, key=lambda label: -accuracy(label))


def _name(board: Leaderboard, label: str) -> str:
    """Of a method as in Python, of others in italics."""
    cls = list_methods().get(label)
    name = label if cls is None else cls.__name__
    roles = {row.kind.role for row in board.rows.values() if row.label == label}
    return f"*{name}*" if roles & {"control", "bound"} else name
