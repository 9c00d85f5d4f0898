"""Methods of other packages, found by their entry points in the group ``foveate.methods``.

Each is loaded alone: one that cannot be used is left out with a warning that names it, and the others stay.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from foveate.errors import first_line
from foveate.method import Method
from foveate.serialise import options_of
from foveate.sums import Composed

GROUP = "foveate.methods"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")  # what a command line and a sum, "a+b", can take apart


def defined_in(module: ModuleType) -> list[type[Method]]:
    """Return the methods whose classes a module defines itself."""
    classes = [cls for _, cls in inspect.getmembers(module, inspect.isclass)]
    return [cls for cls in classes if issubclass(cls, Method) and cls.__module__ == module.__name__]


def plugins(ours: Mapping[str, type[Method]]) -> dict[str, type[Method]]:
    """Name -> class of every method of another package that can be used beside ``ours``."""
    taken = {**ours, "composed": Composed}
    found: dict[str, type[Method]] = {}
    for entry in sorted(set(entry_points(group=GROUP)), key=lambda entry: (entry.name, entry.value)):
        for cls in _loaded(entry):
            reason = _unusable(cls, taken)
            if reason:
                _leave_out(entry, f"{_where(cls)} {reason}")
            else:
                taken[cls.name()] = found[cls.name()] = cls
    return found


def _loaded(entry: EntryPoint) -> list[type[Method]]:
    """Return the methods that an entry point names: a module with some, or a class."""
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # whatever the code of others does when it is imported
        _leave_out(entry, f"it cannot be imported: {type(error).__name__}: {first_line(error)}")
        return []
    classes = [loaded] if inspect.isclass(loaded) and issubclass(loaded, Method) else []
    if isinstance(loaded, ModuleType):
        classes = defined_in(loaded)
    if not classes:
        _leave_out(entry, "it names no method: name the module that defines the class, or module:Class")
    return classes


def _unusable(cls: type[Method], taken: Mapping[str, type[Method]]) -> str:
    """Why a class cannot be one of the methods, in words that follow its name; empty: it can."""
    try:
        name, _ = cls.name(), options_of(cls)
    except Exception as error:
        return f"cannot say its name and options: {type(error).__name__}: {first_line(error)}"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"has the name {name!r}: give one of lower-case letters, digits, _, - and ."
    for other in taken.values():
        if name == other.name() or cls.__name__ == other.__name__:
            return f"has a name of {_where(other)}, which stays: rename the class"
    return ""


def _where(cls: type[Method]) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def _leave_out(entry: EntryPoint, reason: str) -> None:
    package = f" of {entry.dist.name}" if entry.dist is not None else ""
    warnings.warn(
        f"the entry point {entry.name!r} ({entry.value}){package} is left out of foveate.list_methods(): {reason}",
        stacklevel=2,
    )
