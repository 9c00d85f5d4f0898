"""Results as they are kept: ``benchmarks/results/<name>.json``, what was found in an envelope that says how."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from foveate.lab.terminal import CommandError

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """What an experiment found. None: was not recorded (results that are older than the store).

    Attributes:
        experiment: its name.
        command: as the experiment said it then.
        seed: what it drew from.
        date: when it was done, ``2026-11-22``.
        seconds: how long the command ran, interruptions left out.
        commit: of the checkout; of a result that is older than the store: the one that brought it.
        dirty: whether `src` or `benchmarks` had changes that the commit lacks.
        versions: of Python and of the packages that matter.
        machine: what times depend on.
        methods: every method in it, as `Method.to_dict` says it; controls that a benchmark defines for itself, too.
        found: what the command wrote.
    """

    experiment: str
    command: str
    seed: int | None
    date: str | None
    seconds: float | None
    commit: str | None
    dirty: bool | None
    versions: dict[str, str | None]
    machine: dict[str, Any]
    methods: list[dict[str, Any]]
    found: Any

    def write(self, path: Path) -> None:
        """All of it or nothing: who stops this keeps the old result."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False, ensure_ascii=False)
        new = path.with_name(f".{path.name}.partial")
        new.write_text(text + "\n", encoding="utf-8")
        os.replace(new, path)

    def digest(self) -> str:
        """SHA-256 of what was found."""
        return hashlib.sha256(json.dumps(self.found, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Result:
    """One file.

    Raises:
        CommandError: it is no result; the sentence says why.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CommandError(f"there is no result of {path.stem}: run `make result NAME={path.stem}`") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read the result of {path.stem}: {error}") from None
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise CommandError(f"results/{path.name} is no result of schema {SCHEMA}: run `make result NAME={path.stem}`")
    wanted = {field.name for field in fields(Result)}
    if set(data) != wanted:
        wrong = ", ".join(sorted(set(data) ^ wanted))
        raise CommandError(f"results/{path.name} is no whole result ({wrong}): run `make result NAME={path.stem}`")
    return Result(**data)


def methods_in(found: Any) -> list[dict[str, Any]]:
    """Every method in plain data, in order of appearance, each once."""
    seen = {json.dumps(method): method for method in _methods(found)}
    return list(seen.values())


def _methods(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        if isinstance(found.get("method"), str) and ("positions" in found or "methods" in found):
            yield found
            return
        for value in found.values():
            yield from _methods(value)
    elif isinstance(found, list):
        for value in found:
            yield from _methods(value)
