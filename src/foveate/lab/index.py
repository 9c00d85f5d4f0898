"""What there is, without importing it: lists of methods and families, and checks of names, take a moment then.

``index.json`` has what the classes say of themselves; ``python tools/pages/lists.py`` writes it. Where a file is not the one
that was indexed, or another package has methods, the index knows nothing, and whoever asks imports the classes (`declared`).
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import make_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Union

#: Vision blocks and decoder layers of the model that lists are for (LLaVA-1.5-7B): where sites are depends on them.
BLOCKS, LAYERS = 23, 32

PATH = Path(__file__).with_name("index.json")
PACKAGE = Path(__file__).parents[1]

Facts = dict[str, Any]


def methods() -> list[Facts] | None:
    """What `declared.methods` says, by name; None: the classes have to be asked."""
    return None if entry_points(group="foveate.methods") else own_methods()


def own_methods() -> list[Facts] | None:
    """The same of this package's methods alone; None: the index is of other files."""
    return _indexed("methods")


def families() -> list[Facts] | None:
    """What `declared.families` says, by name; None: the classes have to be asked."""
    return _indexed("models")


def options(facts: Facts) -> type:
    """A dataclass with the name and the options of a method, to check values with."""
    return _checking(facts["class"], tuple((name, option["type"]) for name, option in facts["options"].items()))


def hint(text: str) -> Any:
    """A type as it is written: ``int | None``, ``tuple[int, ...]``, ``Literal['a', 'b']``."""
    return _hint(ast.parse(text, mode="eval").body)


def group_sites(names: Iterable[str]) -> str:
    """``["tower 0 (mid)", "tower 1 (mid)", "lm_entry"]`` -> ``"tower 0-1 (mid), lm_entry"``.

    Of several numbers in a name the first one counts.
    """
    groups: dict[str, list[int]] = {}
    for name in names:
        found = re.search(r"\d+", name)
        numbers = groups.setdefault(re.sub(r"\d+", "{}", name, count=1), [])
        if found and int(found[0]) not in numbers:
            numbers.append(int(found[0]))
    return ", ".join(pattern.format(_ranges(numbers)) for pattern, numbers in groups.items())


def write(describe: Callable[[str, str], list[Facts]]) -> str:
    """The content of ``index.json``; ``describe`` gets a folder and the name of a module in it."""
    index = {
        folder: {path.name: {"digest": _digest(path), "has": describe(folder, path.stem)} for path in _files(folder)}
        for folder in ("methods", "models")
    }
    return json.dumps(index, indent=1, ensure_ascii=False) + "\n"


@cache
def _checking(name: str, options: tuple[tuple[str, str], ...]) -> type:
    """The same class for the same words: whoever checks many methods asks for all of them each time."""
    return make_dataclass(name, [(option, hint(text), None) for option, text in options])


@cache
def _indexed(folder: str) -> list[Facts] | None:
    try:
        entries = json.loads(PATH.read_text(encoding="utf-8"))[folder]
    except (OSError, ValueError, KeyError):
        return None
    files = _files(folder)
    if [path.name for path in files] != list(entries) or any(_digest(p) != entries[p.name]["digest"] for p in files):
        return None
    key = "name" if folder == "methods" else "family"
    return sorted((facts for entry in entries.values() for facts in entry["has"]), key=lambda facts: str(facts[key]))


def _files(folder: str) -> list[Path]:
    return sorted(path for path in (PACKAGE / folder).glob("*.py") if path.name != "__init__.py")


def _ranges(numbers: list[int]) -> str:
    """``[0, 1, 2, 5, 7]`` -> ``"0-2, 5, 7"``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


_PLAIN: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "None": None, "NoneType": None}


def _hint(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name):
            return _PLAIN[name]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_hint(left), _hint(right)]  # noqa: UP007 - made, not written
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return Literal[tuple(ast.literal_eval(value) for value in values)]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return Union[_hint(inner), None]  # noqa: UP007 - as Python writes a Literal or None
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return Union[tuple(map(_hint, parts))]  # noqa: UP007
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=parts)):
            is_rest = [isinstance(part, ast.Constant) and part.value is ... for part in parts]
            return tuple[tuple(... if rest else _hint(part) for part, rest in zip(parts, is_rest))]  # type: ignore[misc]
    raise ValueError(f"{ast.unparse(node)} is no type that a command line can say")
