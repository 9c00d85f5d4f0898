"""The file of answers: one JSON object a line, added to as they come, so that a run that was stopped goes on.

Beside it is a file of settings, which says whose answers they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import ConfigError
from foveate.lab import outputs
from foveate.lab.records import Record
from foveate.lab.terminal import CommandError
from foveate.serialise import from_json


@dataclass(frozen=True)
class Answer:
    """What came out for a record.

    Attributes:
        id, record: of the record: its name, and the digest of its line.
        text: the answer.
        tokens: generated.
        error: why there is no answer; else "".
    """

    id: str
    record: str
    text: str = ""
    tokens: int = 0
    error: str = ""

    def line(self) -> str:
        """As it is written."""
        said = {"error": self.error} if self.error else {"answer": self.text, "tokens": self.tokens}
        return json.dumps({"id": self.id, **said, "record": self.record}, ensure_ascii=False) + "\n"


class Answers:
    """The answers in a file.

    Attributes:
        done: ids of the records that have one.
    """

    def __init__(self, path: Path, settings: dict[str, Any], records: Iterable[Record], overwrite: bool) -> None:
        """Take up the file, or begin it.

        Lines that are cut off, errors, and answers to records that are others now, go: they are asked again.

        Raises:
            CommandError: there is a file that holds something else, or answers of another model or method.
        """
        self.path = path
        self.done: set[str] = set()
        beside = path.with_name(path.name + ".settings.json")
        digests = {record.id: record.digest for record in records}
        try:
            if overwrite or not path.exists():
                beside.unlink(missing_ok=True)
                _replace(path, "")
                _replace(beside, json.dumps(settings, indent=2) + "\n")
                return
            _check(path, beside, settings)
            kept = []
            for line in path.read_text(encoding="utf-8").split("\n"):
                name = _answered(line, digests)
                if name is not None and name not in self.done:
                    self.done.add(name)
                    kept.append(line + "\n")
            _replace(path, "".join(kept))
            if kept:
                outputs.keeps(path)
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot keep answers in {str(path)!r}: {error}") from None

    def add(self, answers: Iterable[Answer]) -> None:
        """Write some more, to the disk."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(answer.line() for answer in answers))
            outputs.keeps(self.path)
        except OSError as error:
            raise CommandError(f"cannot keep answers in {str(self.path)!r}: {error}") from None

    def sort(self, ids: Iterable[str]) -> None:
        """Put the lines in the order of the records, whatever the order in which they were asked."""
        place = {name: number for number, name in enumerate(ids)}
        try:
            found = [line for line in self.path.read_text(encoding="utf-8").split("\n") if line]
            ordered = sorted(found, key=lambda line: place.get(from_json(line)["id"], len(place)))
            if ordered != found:
                _replace(self.path, "".join(line + "\n" for line in ordered))
        except OSError as error:
            raise CommandError(f"cannot keep answers in {str(self.path)!r}: {error}") from None


def _check(path: Path, beside: Path, settings: dict[str, Any]) -> None:
    if not beside.is_file():
        raise outputs.taken(path, "is there already, and no answers of `foveate run --data`")
    try:
        before = from_json(beside.read_text(encoding="utf-8"))
    except ConfigError:
        before = None
    for key, value in settings.items():
        if not isinstance(before, dict) or before.get(key) != value:
            had = json.dumps(before.get(key)) if isinstance(before, dict) else "unknown"
            raise outputs.taken(path, f"is of another run, whose {key} was {had}, and now is {json.dumps(value)}")


def _answered(line: str, digests: dict[str, str]) -> str | None:
    """The id of the record that a line answers, if it does."""
    try:
        data = from_json(line)
    except ConfigError:
        return None
    if not isinstance(data, dict) or "answer" not in data or not isinstance(data.get("id"), str):
        return None
    return data["id"] if digests.get(data["id"]) == data.get("record") else None


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is the old one or the new one, whatever happens."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
