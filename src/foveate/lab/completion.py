"""What the tab key offers: the values of options, wherever a command knows them. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from typer import Context

from foveate.lab import checks, index
from foveate.serialise import options_of
from foveate.training.recipe import Recipe


def among(*names: str) -> Callable[[str], list[str]]:
    """A few names."""

    def complete(begun: str) -> list[str]:
        return _that_begin(names, begun)

    return complete


def a_method(*others: str) -> Callable[[str], list[str]]:
    """Names of methods, and of ``others`` that may stand in their place; of a sum, of its last part."""

    def complete(begun: str) -> list[str]:
        parts, plus, _ = begun.rpartition("+")
        names = [*names_of_methods(), *(() if plus else others)]
        return _that_begin([f"{parts}{plus}{name}" for name in names], begun)

    return complete


def a_model(begun: str) -> list[str]:
    """Names of the reference models, and folders."""
    return [*_that_begin(checks.REFERENCES, begun), *a_folder(begun)]


def a_folder(begun: str) -> list[str]:
    """Folders whose names begin so."""
    return [str(path) for path in sorted(Path().glob(f"{begun}*")) if path.is_dir()] if begun else []


def a_profile(begun: str) -> list[str]:
    """``name=`` is the user's own; the method after it is one that there is."""
    name, equals, _ = begun.partition("=")
    return _that_begin([f"{name}={method}" for method in (*names_of_methods(), "none")], begun) if equals else []


def an_option(context: Context, begun: str) -> list[str]:
    """``name=`` of the options of every method that is asked for; where values are few, ``name=value``."""
    said = context.params.get("method") or context.params.get("methods") or context.info_name or ""
    parts = [part.strip() for name in ([said] if isinstance(said, str) else said) for part in name.split("+")]
    known, found = names_of_methods(), list[str]()
    for part in dict.fromkeys(parts):
        for name, option in known[part]["options"].items() if part in known else ():
            values = _values(index.hint(option["type"])) or [""]
            found += [f"{f'{part}.' if len(parts) > 1 else ''}{name}={value}" for value in values]
    return _that_begin(found, begun)


def a_setting(begun: str) -> list[str]:
    """``name=`` of what can be set of a recipe."""
    return _that_begin([f"{name}=" for name in options_of(Recipe)], begun)


def names_of_methods() -> dict[str, dict[str, Any]]:
    """Facts of every method by name; none where a method is of another package, and asking would import it."""
    return {str(facts["name"]): facts for facts in index.methods() or ()}


def _values(hint: Any) -> list[str]:
    """What a type says its values are, if they are few."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return list(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return [value for part in get_args(hint) for value in _values(part)]
    return []


def _that_begin(names: Iterable[str], begun: str) -> list[str]:
    return [name for name in names if name.startswith(begun)]
