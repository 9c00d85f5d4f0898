"""Answers on disk: one JSONL file per method, budget and seed, so that an interrupted run goes on where it stopped.

The first line says what the answers are to; every other line is one question.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from foveate.errors import ConfigError
from foveate.lab import outputs
from foveate.lab.asker import Cost
from foveate.lab.terminal import CommandError
from foveate.serialise import from_json

#: Reports, beside the folder of answers.
JSON, MARKDOWN = outputs.JSON, outputs.MARKDOWN
#: All that a run leaves in its folder.
WRITTEN = (
    "answers/*.jsonl",
    "scores/*.json",
    "costs*.jsonl",
    "trials.jsonl",
    "method.json",
    "found.json",
    *outputs.MADE,
)


@dataclass(frozen=True)
class Record:
    """One question.

    Attributes:
        id, task: of the sample.
        answer: the word that came out.
        right: whether it is the right one.
        cost: None for the stock model.
    """

    id: str
    task: str
    answer: str
    right: bool
    cost: Cost | None


class Kept(Protocol):
    """A dataclass of plain data, and its name in a file."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Kept)


class Store(Generic[R]):
    """The answers of one method at one budget to one benchmark.

    Attributes:
        records: by id, in the order of the file.
    """

    def __init__(self, path: Path, header: dict[str, Any], kind: Callable[..., R]) -> None:
        self.path, self.kind = path, kind
        self.records: dict[str, R] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self.records, size = _read(path, header, kind)
                if self.records:
                    outputs.keeps(path)
                if size < path.stat().st_size:  # the last line was cut off in the middle
                    os.truncate(path, size)
            if not path.exists() or not path.stat().st_size:
                path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot keep answers in {str(path)!r}: {error}") from None

    def add(self, records: Iterable[R]) -> None:
        """Write those that are not there yet."""
        new = [record for record in records if record.id not in self.records]
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in new)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            raise CommandError(f"cannot keep answers in {str(self.path)!r}: {error}") from None
        outputs.keeps(self.path)
        self.records |= {record.id: record for record in new}


def kept(path: Path, header: dict[str, Any], kind: Callable[..., R]) -> list[R]:
    """The answers in a file that somebody else may be writing: it stays as it is."""
    try:
        return list(_read(path, header, kind)[0].values())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {str(path)!r}: {error}") from None


def _read(path: Path, header: dict[str, Any], kind: Callable[..., R]) -> tuple[dict[str, R], int]:
    """Answers by id, and how many bytes of the file are whole lines."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    records: dict[str, R] = {}
    if whole:
        first, *lines = whole.decode("utf-8").splitlines()
        check_header(path, _object(path, 1, first), header)
        for number, line in enumerate(lines, start=2):
            data = _object(path, number, line)
            try:
                cost = data.pop("cost")
                record = kind(**data, cost=None if cost is None else Cost(**cost))
            except (KeyError, TypeError):
                raise CommandError(f"line {number} of {str(path)!r} is not an answer: delete the file") from None
            records[record.id] = record
    return records, len(whole)


def file_name(entry: str, by: str | None, seed: int | None = None) -> str:
    """``fastv(layer=4) at 0.25`` by tokens -> ``fastv-layer=4-at-0.25-tokens-seed0.jsonl``."""
    words = file_stem(entry if by is None else f"{entry} {by}")
    return f"{words}.jsonl" if seed is None else f"{words}-seed{seed}.jsonl"


def file_stem(text: str) -> str:
    """``text`` as a name that every file system takes."""
    words = re.sub(r"[^\w.+=]+", "-", text).strip("-")
    if len(words) > 160:  # file systems take 255 bytes
        words = f"{words[:140]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return words


def check_folder(folder: Path, common: dict[str, Any], overwrite: bool = False) -> None:
    """Raise `CommandError` if the answers in a folder are to other questions, or another model's.

    Args:
        folder: of the answers, in the folder of the run.
        common: what the header of every file must say.
        overwrite: take away what is there, in place of that.
    """
    if overwrite:
        outputs.clear(folder.parent, WRITTEN)
    outputs.check_made(folder.parent, overwrite)
    for path in sorted(folder.glob("*.jsonl")):
        try:
            with path.open(encoding="utf-8") as file:
                line = file.readline()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read {str(path)!r}: {error}") from None
        if line.endswith("\n"):  # else nothing but a part of the header was ever written
            found = _object(path, 1, line)
            check_header(path, {key: found.get(key) for key in common}, common)


def check_header(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise `CommandError` unless the file's header is the one wanted."""
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            was, now = _short(found.get(key)), _short(wanted.get(key))
            raise outputs.taken(path, f"is of another run, whose {key} was {was}, and now is {now}")


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        data = from_json(line)
    except ConfigError:
        data = None
    if not isinstance(data, dict):
        raise CommandError(f"line {number} of {str(path)!r} is not a JSON object: delete the file")
    return data


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
