"""The rows of a leaderboard: what is known of each method at each budget, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from foveate.errors import first_line
from foveate.lab import outputs
from foveate.lab.bench.summary import Spread
from foveate.lab.evaluation.results import Spent
from foveate.lab.evaluation.statistics import Share
from foveate.lab.evaluation.store import JSON
from foveate.lab.terminal import CommandError

SCHEMA = 1
#: What all rows of a file have in common.
COMMON = ("model", "weights", "split", "tasks", "per_task", "seed", "versions")

Key = tuple[str, str | None, float | None]
"""A row's label, what its budget counts, and the budget."""


@dataclass(frozen=True)
class Compared:
    """Accuracy, and accuracy minus the stock model's on the same questions."""

    accuracy: Share
    difference: Share


@dataclass(frozen=True)
class Speed:
    """How many times as fast a method is to the first token of an answer, each ratio of one round.

    Attributes:
        stock, stride: as the stock model, and as `Stride` at the same budget on the same shape; None: that cannot spend it.
        spent: what the method spends on that shape.
        cpu: what it was timed on.
        command: what times it again.
    """

    stock: Spread
    stride: Spread | None
    spent: Spent
    cpu: str
    command: str


@dataclass(frozen=True)
class Kind:
    """What sort of method it is.

    Attributes:
        role: ``method``, ``control``, or ``bound``, which knows the answers or is the stock model.
        acts: where it acts, in the order of the forward pass.
        attention: whether it reads attention weights.
        training: ``free``; ``untrained``: its paper trains the model, and here nobody has; ``trained``.
    """

    role: str
    acts: tuple[str, ...]
    attention: bool
    training: str


@dataclass(frozen=True)
class Row:
    """A method at a budget.

    Attributes:
        label, by, budget: the entry; ``by`` and ``budget`` are None where it has no dial.
        method: with its dial in place, as plain data.
        kind: what sort it is.
        seeds: of its questions: those of a row of the second round are the first round's and others.
        whole: all questions; groups: those of each group of tasks.
        spent: what it cost.
        command: what asks the same again.
        speed: None: it was not timed.
    """

    label: str
    by: str | None
    budget: float | None
    method: dict[str, Any] | None
    kind: Kind
    seeds: tuple[int, ...]
    whole: Compared
    groups: dict[str, Compared]
    spent: Spent
    command: str
    speed: Speed | None = None

    @property
    def key(self) -> Key:
        return self.label, self.by, self.budget


@dataclass(frozen=True)
class Missed:
    """A budget that a method cannot spend: ``closest`` is the nearest that it can."""

    label: str
    by: str
    budget: float
    closest: float

    @property
    def key(self) -> Key:
        return self.label, self.by, self.budget


@dataclass
class Leaderboard:
    """All rows of one model.

    Attributes:
        command: that measured last.
        common: what all rows have in common (`COMMON`).
        groups: the tasks of each group that was asked about.
        shape: what was timed, in words; "": nothing yet.
        rows, missed: by key.
        notes: which methods were left out, and why.
    """

    command: str
    common: dict[str, Any]
    groups: dict[str, tuple[str, ...]]
    shape: str = ""
    rows: dict[Key, Row] = field(default_factory=dict)
    missed: dict[Key, Missed] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return str(self.common["model"])

    def add(self, rows: Iterable[Row], missed: Iterable[Missed]) -> None:
        """Take rows in; one that is there already stays if it has more questions, and keeps its times."""
        for row in rows:
            old = self.rows.get(row.key)
            if old is None or len(old.seeds) <= len(row.seeds):
                same = old is not None and old.method == row.method
                self.rows[row.key] = replace(row, speed=old.speed) if old is not None and same else row
            self.missed.pop(row.key, None)
        for each in missed:
            self.missed[each.key] = each
            self.rows.pop(each.key, None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data. ``accuracy`` of a row is where the results of an evaluation have it, too."""
        rows = []
        for row in self.rows.values():
            data = asdict(row)
            whole = data.pop("whole")
            rows.append({**data, **whole})
        return {
            "schema": SCHEMA,
            "command": self.command,
            **self.common,
            "groups": {name: list(tasks) for name, tasks in self.groups.items()},
            "shape": self.shape,
            "rows": _rounded(rows),
            "out_of_reach": [asdict(each) for each in self.missed.values()],
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> Path:
        """Into the folder, all of it or nothing."""
        path, part = folder / JSON, folder / f".{JSON}.partial"
        try:
            part.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise CommandError(f"cannot write the rows to {str(path)!r}: {error}") from None
        return path


def read(path: Path) -> Leaderboard:
    """What a folder has, or a results.json, or a store of results keeps of one.

    Raises:
        CommandError: there is none, or it is something else.
    """
    file = path / JSON if path.is_dir() else path
    how = "`foveate leaderboard --out FOLDER` writes one"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CommandError(f"there are no results in {str(path)!r}: {how}") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {str(file)!r} as JSON: {error}") from None
    try:
        return of_dict(data.get("found", data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise CommandError(f"{str(file)!r} is not the results.json of a leaderboard ({what}): {how}") from None


def of_dict(data: dict[str, Any]) -> Leaderboard:
    """What `Leaderboard.to_dict` made plain, as it was."""
    if data["schema"] != SCHEMA:
        raise ValueError(f"its schema is {data['schema']!r}, and {SCHEMA} is read here")
    rows = [_row(row) for row in data["rows"]]
    missed = [Missed(**each) for each in data["out_of_reach"]]
    return Leaderboard(
        data["command"],
        {name: data[name] for name in COMMON},
        {name: tuple(tasks) for name, tasks in data["groups"].items()},
        data["shape"],
        {row.key: row for row in rows},
        {each.key: each for each in missed},
        tuple(data["notes"]),
    )


def check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `CommandError` unless rows of two runs may stand in one file."""
    for name in COMMON:
        if found[name] != wanted[name]:
            was, now = (_short(each[name]) for each in (found, wanted))
            raise outputs.taken(path, f"has rows of another run, whose {name} was {was}, and now is {now}")


def check_together(boards: Sequence[Leaderboard]) -> None:
    """Raise `CommandError` for boards that one page cannot show: of other versions, or two of one model."""
    models = [board.model for board in boards]
    for board in boards[1:]:
        if board.common["versions"] != boards[0].common["versions"]:
            was, now = (_short(each.common["versions"]) for each in (boards[0], board))
            raise CommandError(
                f"{board.model} was measured with {now} and {boards[0].model} with {was}: measure both with the same"
            )
    for model in models:
        if models.count(model) > 1:
            raise CommandError(f"--from names two runs of the model {model}: leave one of them out")


def _row(data: dict[str, Any]) -> Row:
    speed, given = data["speed"], {key: value for key, value in data.items() if key not in ("accuracy", "difference")}
    return Row(
        **{
            **given,
            "kind": Kind(**{**data["kind"], "acts": tuple(data["kind"]["acts"])}),
            "seeds": tuple(data["seeds"]),
            "whole": _compared(data),
            "groups": {name: _compared(group) for name, group in data["groups"].items()},
            "spent": Spent(**data["spent"]),
            "speed": None if speed is None else _speed(speed),
        }
    )


def _compared(data: dict[str, Any]) -> Compared:
    return Compared(Share(**data["accuracy"]), Share(**data["difference"]))


def _speed(data: dict[str, Any]) -> Speed:
    stride = None if data["stride"] is None else Spread(**data["stride"])
    return Speed(Spread(**data["stock"]), stride, Spent(**data["spent"]), data["cpu"], data["command"])


def _rounded(value: Any) -> Any:
    """Nobody reads more than six digits, and files are shorter with them; a method stays as it is."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: each if key == "method" else _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
