"""What a command asked for: reports keep it, and pages are made of reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

#: Options that a field calls otherwise.
NAMES = {
    "methods": "method",
    "options": "option",
    "described": "method-json",
    "budgets": "budget",
    "tasks": "task",
    "seeds": "seed",
    "images": "image",
    "prompts": "prompt",
    "batch": "batch-size",
}


def options(command: str) -> dict[str, list[str]]:
    """The values of every ``--option``."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in shlex.split(command):
        if word.startswith("--"):
            values = found.setdefault(word.removeprefix("--"), [])
        else:
            values.append(word)
    return found


def fields_of(kind: type, given: Mapping[str, Sequence[str]], *apart: str) -> dict[str, Any]:
    """Fields of a dataclass that a command gave; ``apart``: those that are no options."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        values = given.get(NAMES.get(name, name.replace("_", "-")))
        if values is None or name in apart:
            continue
        if hint is bool:
            found[name] = True
        elif get_origin(hint) is tuple:
            found[name] = tuple(map(get_args(hint)[0], values))
        else:
            found[name] = (hint if isinstance(hint, type) else get_args(hint)[0])(values[0])
    return found
