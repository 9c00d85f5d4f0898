"""How long a run will take: the stock model is timed on a few questions of each layout before the others are asked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.questions import Prompt

#: Questions that are timed where each is asked alone.
TIMED = 8

#: Rows of a table for a person.
MOST = 30

Sizes = tuple[tuple[int, int], ...]
"""Of a question's images."""
Seconds = Mapping[tuple[Sizes, bool], float]
"""Of a question to the stock model, by the sizes of its images, and by whether it shares a prompt."""


@dataclass(frozen=True)
class Due:
    """What an entry of the plan has yet to be asked.

    Attributes:
        shares: what its questions about the same images share.
        left: how many it has not answered yet, by the sizes of their images.
        flops: what it spends of the stock model's FLOPs, about.
    """

    entry: Entry
    shares: str
    left: Counter[Sizes]
    flops: float

    @property
    def wanted(self) -> set[tuple[Sizes, bool]]:
        """What has to be timed."""
        return {(sizes, self.shares == "prompt") for sizes, count in self.left.items() if count}

    def seconds(self, of_one: Seconds) -> float:
        """What it will take, about; layouts that were not timed count as the slowest one."""
        slowest = max(of_one.values(), default=0.0)
        shared = self.shares == "prompt"
        return self.flops * sum(count * of_one.get((sizes, shared), slowest) for sizes, count in self.left.items())


@dataclass(frozen=True)
class Line:
    """An entry of the plan.

    Attributes:
        entry: its label and budget.
        shares: what its questions about the same images share.
        left: questions that it has not answered yet.
        seconds: that these will take, about.
    """

    entry: str
    shares: str
    left: int
    seconds: float

    @classmethod
    def of(cls, due: Due, of_one: Seconds, name: str = "") -> Line:
        return cls(name or str(due.entry), due.shares, due.left.total(), due.seconds(of_one))


@dataclass(frozen=True)
class Forecast:
    """A plan, and how long it takes on this machine.

    Attributes:
        unmeasured: methods of which nobody has measured yet what they spend; the run begins with that.
        finding: seconds that it takes to find their budgets, about.
    """

    lines: tuple[Line, ...]
    unmeasured: int = 0
    finding: float = 0.0

    @classmethod
    def of(cls, due: Iterable[Due], of_one: Seconds) -> Forecast:
        return cls(tuple(Line.of(each, of_one) for each in due))

    def __add__(self, other: Forecast) -> Forecast:
        return Forecast(self.lines + other.lines, self.unmeasured + other.unmeasured, self.finding + other.finding)

    @property
    def hours(self) -> float:
        """All of it."""
        return (sum(line.seconds for line in self.lines) + self.finding) / 3600

    def __str__(self) -> str:
        left = sum(line.left for line in self.lines)
        where = "lines of the table" if len(self.lines) <= MOST else "parts, which --json lists"
        said = f"{_time(self.hours)}: {left:,} questions to ask, in {len(self.lines)} {where}"
        if not self.unmeasured:
            return said
        methods = "1 method" if self.unmeasured == 1 else f"{self.unmeasured} methods"
        return (
            f"{said}\n{_time(self.finding / 3600)} of it to find the budgets of {methods}: what these spend has not been "
            "measured here. Until then, a line is reckoned at its budget of FLOPs, or else at the stock model's time, and "
            "budgets that a method cannot reach are counted."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "hours": self.hours,
            "lines": [asdict(line) for line in self.lines],
            "unmeasured": self.unmeasured,
            "hours_to_find_budgets": self.finding / 3600,
        }

    def table(self) -> list[tuple[str, ...]]:
        """For a person: a head, and a row for each entry; where there are many, for each budget."""
        head = ("method", "questions share", "left", "seconds each", "minutes")
        lines = _by_budget(self.lines) if len(self.lines) > MOST else self.lines
        rows = [
            (
                line.entry,
                line.shares,
                str(line.left),
                f"{line.seconds / max(1, line.left):.2f}",
                f"{line.seconds / 60:.1f}",
            )
            for line in lines
        ]
        if all(
            line.shares in ("", "nothing") for line in lines
        ):  # as with the small models, whose questions share nothing
            return [(first, *rest) for first, _, *rest in [head, *rows]]
        return [head, *rows]


def _by_budget(lines: Sequence[Line]) -> list[Line]:
    """A line for all methods at a budget; what has none as it is."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.entry.rpartition(" at ")[2], []).append(line)
    return [
        Line(
            several[0].entry if len(several) == 1 else f"{len(several)} methods at {budget}",
            several[0].shares if len({line.shares for line in several}) == 1 else "",
            sum(line.left for line in several),
            sum(line.seconds for line in several),
        )
        for budget, several in found.items()
    ]


def timed(
    groups: Sequence[Sequence[Prompt]],
    due: Iterable[Due],
    ask: Callable[[Sequence[Prompt]], object],
    tell: Callable[[str, float], None],
) -> Seconds:
    """Time the stock model on a batch of each layout, as it is; or on some of its questions, no two about the same images.

    Args:
        groups: the batches.
        due: what is left; other layouts are not timed.
        ask: asks the stock model a batch, as an evaluation does.
        tell: gets what happens now, and the share of this that is done.
    """
    wanted = sorted(set[tuple[Sizes, bool]]().union(*(each.wanted for each in due)))
    found: dict[tuple[Sizes, bool], float] = {}
    for number, (sizes, shared) in enumerate(wanted):
        alike = [group for group in groups if group[0].sizes == sizes]
        if not alike:
            continue
        tell(f"timing the stock model on a few questions: {number + 1} of {len(wanted)} layouts", number / len(wanted))
        if not found:
            ask(alike[0][:1])  # the first call warms up
        asked = list(alike[0])
        if not shared:
            asked = list({prompt.seen: prompt for group in alike for prompt in group}.values())[:TIMED]
        start = time.perf_counter()
        ask(asked)
        found[sizes, shared] = (time.perf_counter() - start) / len(asked)
    return found


def _time(hours: float) -> str:
    return f"about {hours:.2g} hours" if hours >= 1 else f"about {60 * hours:.2g} minutes"
