"""Experiments as they are written down: ``benchmarks/experiments/<name>.yaml``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from foveate.lab.terminal import CommandError

KEYS = ("says", "run", "seed", "needs", "stale", "awaits", "tables", "files")
PLACES = ("work", "out")  # what `run` may name in braces


@dataclass(frozen=True)
class Shown:
    """A table in a page, or a whole file, that results are rendered into.

    Attributes:
        name: of the table, as its marker says it; of a whole file: its path.
        file: where it goes, relative to the root.
        by: ``module:function`` in ``benchmarks/tables``; it gets what each result found and returns Markdown, or the bytes
            of a picture.
        of: names of the results.
        whole: there is nothing else in the file.
    """

    name: str
    file: str
    by: str
    of: tuple[str, ...]
    whole: bool


@dataclass(frozen=True)
class Stale:
    """Why a result no longer says what the library does, until it is measured again.

    Attributes:
        since: day of the change, ``2026-11-29``; a result of a later day is not stale.
        why: what changed, in a few words that begin with a small letter.
    """

    since: str
    why: str


@dataclass(frozen=True)
class Experiment:
    """A command that makes a result.

    Attributes:
        name: of its file, and of its result's.
        says: what it measures, in a line.
        run: the command. ``{work}`` is a folder of its own that stays if it is interrupted, ``{out}`` the file
            ``results.json`` in it, where it leaves its JSON; a command that leaves none there prints it.
        seed: what it draws from.
        needs: modules besides the package's own, and how to get each.
        stale: why the stored result is of an older library, if it is.
        awaits: what it takes to have a result, where there is none yet: a machine, a key.
        shown: tables and files made of it.
    """

    name: str
    says: str
    run: str
    seed: int | None
    needs: dict[str, str]
    stale: Stale | None
    awaits: str | None
    shown: tuple[Shown, ...]


def read(path: Path) -> Experiment:
    """One file.

    Raises:
        CommandError: it is no experiment; the sentence says why.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"cannot read {path.name}: {error}") from None
    if not isinstance(data, dict):
        raise CommandError(f"{path.name} is not an experiment: it needs the keys says and run")
    for key in data:
        if key not in KEYS:
            raise CommandError(f"{path.name} has the unknown key {key!r}; an experiment has {', '.join(KEYS)}")
    _check(path.name, data)
    tables = [_shown(path, name, entry, "in") for name, entry in (data.get("tables") or {}).items()]
    files = [_shown(path, name, entry, None) for name, entry in (data.get("files") or {}).items()]
    return Experiment(
        path.stem,
        " ".join(data["says"].split()),
        " ".join(data["run"].split()),
        data.get("seed"),
        data.get("needs") or {},
        _stale(path.name, data.get("stale")),
        data.get("awaits"),
        (*tables, *files),
    )


def _check(name: str, data: dict[str, Any]) -> None:
    for key in ("says", "run"):
        if not isinstance(data.get(key), str) or not data[key].strip():
            raise CommandError(f"{name} needs {key!r}: a {'line on what it measures' if key == 'says' else 'command'}")
    for place in re.findall(r"\{(\w+)\}", data["run"]):
        if place not in PLACES:
            raise CommandError(f"the command of {name} names {{{place}}}; there is {{work}} and {{out}}")
    kinds = {"seed": (int, "a whole number"), "needs": (dict, "module: how to get it")}
    kinds["awaits"] = (str, "what it takes to have a result, in a few words")
    for key, (kind, right) in (kinds | dict.fromkeys(("tables", "files"), (dict, "name: where and by what"))).items():
        if data.get(key) is not None and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
            raise CommandError(f"{key!r} of {name} is {data[key]!r}: give {right}")


def _stale(name: str, entry: Any) -> Stale | None:
    if entry is None:
        return None
    right = isinstance(entry, dict) and set(entry) == {"since", "why"}
    if not right or not isinstance(entry["since"], date) or not isinstance(entry["why"], str):
        raise CommandError(f"'stale' of {name} is {entry!r}: give {{since: a day, why: what changed}}")
    return Stale(entry["since"].isoformat(), " ".join(entry["why"].split()).rstrip("."))


def _shown(path: Path, name: str, entry: Any, where: str | None) -> Shown:
    """``where``: the key that says the file, or None: the name is the file."""
    keys = ("by", "of") if where is None else (where, "by", "of")
    if not isinstance(entry, dict) or not set(keys) - {"of"} <= set(entry) <= set(keys):
        raise CommandError(f"{name!r} in {path.name} needs {' and '.join(keys[:-1])}, and may have of")
    if where is not None and not re.fullmatch(r"[\w-]+", str(name)):
        raise CommandError(f"the table {name!r} in {path.name}: a name is of letters, digits, _ and -")
    if not re.fullmatch(r"\w+:\w+", str(entry["by"])):
        raise CommandError(f"{name!r} in {path.name} is made by {entry['by']!r}: give module:function")
    of = entry.get("of", path.stem)
    return Shown(
        str(name),
        entry[where] if where else name,
        entry["by"],
        (of,) if isinstance(of, str) else tuple(of),
        where is None,
    )


def read_all(folder: Path) -> dict[str, Experiment]:
    """Every experiment by name."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.yaml"))}
