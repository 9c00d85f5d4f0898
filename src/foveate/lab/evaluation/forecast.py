"""How long a run will take: the stock model is timed on a few questions of each layout before the others are asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveate.lab.asker import Asker
from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.questions import Prompt
from foveate.lab.evaluation.sharing import shared_by
from foveate.lab.evaluation.store import Kept, Store
from foveate.method import Method

#: Questions that are timed where each is asked alone.
TIMED = 8

Key = tuple[tuple[tuple[int, int], ...], bool]
"""The sizes of a question's images, and whether it shares a prompt."""
Seconds = dict[Key, float]
"""Of a question to the stock model."""


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


@dataclass(frozen=True)
class Forecast:
    """A plan, and how long it takes on this machine."""

    lines: tuple[Line, ...]

    @property
    def hours(self) -> float:
        """All of it."""
        return sum(line.seconds for line in self.lines) / 3600

    def __str__(self) -> str:
        left = sum(line.left for line in self.lines)
        return f"about {self.hours:.2g} hours: {left:,} questions to ask, in {len(self.lines)} lines of the table"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"hours": self.hours, "lines": [asdict(line) for line in self.lines]}

    def table(self) -> list[tuple[str, ...]]:
        """For a person: a head, and a row for each entry."""
        head = ("method", "questions share", "left", "seconds each", "minutes")
        rows = [
            (
                line.entry,
                line.shares,
                str(line.left),
                f"{line.seconds / max(1, line.left):.2f}",
                f"{line.seconds / 60:.1f}",
            )
            for line in self.lines
        ]
        return [head, *rows]


def forecast(
    asker: Asker,
    groups: Sequence[Sequence[Prompt]],
    stores: Mapping[Entry, Store[Any]],
    share: Callable[[Method], float],
    ask: Callable[[Sequence[Prompt]], object],
) -> Forecast:
    """Time the stock model, and reckon what each entry will take.

    Args:
        asker: the model.
        groups: the batches.
        stores: what each entry has answered.
        share: FLOPs of a method over those of the stock model.
        ask: asks the stock model a batch, as an evaluation does.
    """
    ways = {entry: "prompt" if entry.method is None else shared_by(entry.method, asker.host) for entry in stores}
    if not asker.speech.english:
        ways = dict.fromkeys(stores, "nothing")
    left = {
        entry: [each for group in groups for each in group if not _known(store, each)]
        for entry, store in stores.items()
    }
    wanted = {(prompt.sizes, ways[entry] == "prompt") for entry, some in left.items() for prompt in some}
    seconds = _timed(groups, wanted, ask) if wanted else {}
    lines = []
    for entry, some in left.items():
        each = sum(seconds[prompt.sizes, ways[entry] == "prompt"] for prompt in some)
        factor = 1.0 if entry.method is None or not some else share(entry.method)
        lines.append(Line(str(entry), ways[entry], len(some), each * factor))
    return Forecast(tuple(lines))


def _timed(groups: Sequence[Sequence[Prompt]], wanted: set[Key], ask: Callable[[Sequence[Prompt]], object]) -> Seconds:
    """A batch of each layout, as it is; or some of its questions, no two about the same images."""
    found: Seconds = {}
    ask(groups[0][:1])  # the first call warms up
    for sizes, shared in sorted(wanted):
        alike = [group for group in groups if group[0].sizes == sizes]
        asked = list(alike[0])
        if not shared:
            asked = list({prompt.seen: prompt for group in alike for prompt in group}.values())[:TIMED]
        start = time.perf_counter()
        ask(asked)
        found[sizes, shared] = (time.perf_counter() - start) / len(asked)
    return found


def _known(store: Store[Any], prompt: Prompt) -> bool:
    records: Mapping[str, Kept] = store.records
    return prompt.id in records
