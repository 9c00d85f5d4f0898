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
from foveate.lab.evaluation.store import Store
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
            alone: no answers rest on it, as where a plan was printed and no more: then it is replaced.
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
        name = json.dumps(method.to_dict())
        if name not in self._store.records:
            self._store.add([Spending(name, self._measure(method))])
        return self._store.records[name].cost


def meter(asker: Asker, prompts: Sequence[Prompt], batch: int, new_tokens: int) -> Callable[[Method], Cost]:
    """Measures what a method spends on prompts of the most frequent layouts, with answers as long as the stock model's.

    One whose counts follow from the grid alone is measured on one prompt of each.
    """
    frequent = sorted(layouts(prompts), key=len, reverse=True)[:LAYOUTS]

    @cache
    def probes(each: int) -> list[tuple[Said, Sequence[Prompt], int]]:
        groups = [(layout[: min(each, batch)], len(layout)) for layout in frequent]
        return [(asked(asker, group, new_tokens), group, weight) for group, weight in groups]

    def measure(method: Method) -> Cost:
        fixed, costs = all(part.has_fixed_budget for part in method.parts()), []
        for said, group, weight in probes(1 if fixed else PROBES):
            with told(group):
                costs.append((hear(asker.model, method, said, asker.learned)[0].cost, weight))
        return Cost.total((cost, weight) for cost, weight in costs if cost is not None)

    return measure
