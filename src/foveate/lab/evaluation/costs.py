"""What methods spend on a few questions: kept, so that a run that goes on does not look for its budgets again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.lab.evaluation.asking import Cost
from foveate.lab.evaluation.store import Store
from foveate.lab.terminal import CommandError
from foveate.method import Method


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

    def __init__(self, measure: Callable[[Method], Cost], path: Path, header: dict[str, Any]) -> None:
        """
        Args:
            measure: what a method spends.
            path: of the file.
            header: what it is measured on; a file about something else is refused.
        """
        self._measure = measure
        self._store = Store(path, header, Spending)
        if any(record.cost is None for record in self._store.records.values()):
            raise CommandError(f"{str(path)!r} has a method without what it spends: delete the file")

    def __call__(self, method: Method) -> Cost:
        """As it is known, or measured now."""
        name = json.dumps(method.to_dict())
        if name not in self._store.records:
            self._store.add([Spending(name, self._measure(method))])
        return self._store.records[name].cost
