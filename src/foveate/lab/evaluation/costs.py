"""What methods spend on a few questions: kept, so that a run that goes on does not look for its budgets again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from foveate.lab.asker import Asker, Cost
from foveate.lab.evaluation.bounds import told
from foveate.lab.evaluation.forced import Said, asked, hear
from foveate.lab.evaluation.questions import Prompt, layouts
from foveate.lab.evaluation.store import Store, kept
from foveate.lab.terminal import CommandError
from foveate.method import Method

#: Prompts of each layout, and layouts at most.
PROBES, LAYOUTS = 8, 6


@dataclass(frozen=True)
class Spending:
    """A method, and what it spends.

    Attributes:
        id: the method as JSON.
        cost: of the questions together.
    """

    id: str
    cost: Cost


class Costs:
    """What is measured of methods, on disk."""

    def __init__(
        self, measure: Callable[[Method], Cost], path: Path, header: dict[str, Any], alone: bool = False
    ) -> None:
        """
        Args:
            measure: what a method spends.
            path: of the file.
            header: what it is measured on; a file about something else is refused.
            alone: no answers rest on it, as where a run was stopped before the first one: then it is replaced.
        """
        self._measure = measure
        try:
            self._store = Store(path, header, Spending)
        except CommandError:
            if not alone or not path.is_file():
                raise
            path.unlink()
            self._store = Store(path, header, Spending)
        if any(record.cost is None for record in self._store.records.values()):
            raise CommandError(f"{str(path)!r} has a method without what it spends: delete the file")

    def __call__(self, method: Method) -> Cost:
        """As it is known, or measured now."""
        name = _name(method)
        if name not in self._store.records:
            self._store.add([Spending(name, self._measure(method))])
        return self._store.records[name].cost


class UnmeasuredError(Exception):
    """Nobody has measured yet what a method spends."""


class Known:
    """What was measured of methods before, as `Costs` has kept it; the file stays as it is."""

    def __init__(self, path: Path, header: dict[str, Any], alone: bool = False) -> None:
        """As for `Costs`."""
        self._costs: dict[str, Cost] = {}
        try:
            self._costs = {each.id: each.cost for each in kept(path, header, Spending)} if path.is_file() else {}
        except CommandError:
            if not alone:
                raise

    def __call__(self, method: Method) -> Cost:
        """As it is known; `UnmeasuredError` if it is not."""
        if (name := _name(method)) not in self._costs:
            raise UnmeasuredError(name)
        return self._costs[name]


def probes(method: Method | None, prompts: Sequence[Prompt], most: int) -> list[list[Prompt]]:
    """The prompts on which a method is measured, up to ``most`` of each of the most frequent layouts.

    Where counts follow from the grid alone, one of each says all.
    """
    fixed = method is None or all(part.has_fixed_budget for part in method.parts())
    return [layout[: min(1 if fixed else PROBES, most)] for layout in _frequent(prompts)]


def meter(asker: Asker, prompts: Sequence[Prompt], batch: int, new_tokens: int) -> Callable[[Method], Cost]:
    """Measures what a method spends on its `probes`, with answers as long as the stock model's."""
    weights = list(map(len, _frequent(prompts)))

    @cache
    def said(group: tuple[Prompt, ...]) -> Said:
        return asked(asker, group, new_tokens)

    def measure(method: Method) -> Cost:
        costs = []
        for group, weight in zip(probes(method, prompts, batch), weights):
            with told(group):
                heard = hear(asker.model, method, said(tuple(group)), asker.learned)
            costs.append((heard[0].cost, weight))
        return Cost.total((cost, weight) for cost, weight in costs if cost is not None)

    return measure


def _frequent(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    return sorted(layouts(prompts), key=len, reverse=True)[:LAYOUTS]


def _name(method: Method) -> str:
    return json.dumps(method.to_dict())
