"""One file per published method; `methods` finds them, nothing lists them."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from foveate.errors import ConfigError, UnknownNameError
from foveate.method import Composed, Method


@cache
def methods() -> dict[str, type[Method]]:
    """Name -> class of every method: the files of this package, then entry points of the group ``foveate.methods``."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    modules += [entry.load() for entry in entry_points(group="foveate.methods")]
    found = {cls.name(): cls for module in modules for cls in _defined_in(module)}
    return dict(sorted(found.items()))


def _defined_in(module: ModuleType) -> list[type[Method]]:
    classes = [cls for _, cls in inspect.getmembers(module, inspect.isclass)]
    return [cls for cls in classes if issubclass(cls, Method) and cls.__module__ == module.__name__]


def method_class(name: str) -> type[Method]:
    """The class of a method by its name; `UnknownNameError` lists what there is."""
    known = methods()
    if name.lower() not in known:
        hint = "" if name else " (a sum has one on both sides of every +)"
        raise UnknownNameError(f"there is no method {name!r}{hint}; there are {', '.join(known)}")
    return known[name.lower()]


def make(name: str, /, **options: Any) -> Method:
    """A method by name: ``make("fastv", keep=0.5)``; several joined by ``+`` take no options."""
    if "+" in name:
        if options:
            raise ConfigError("options of a sum are ambiguous: build each method and add them with `+`")
        return Composed(tuple(make(part.strip()) for part in name.split("+")))
    return method_class(name).from_options(options)


def method_from_json(data: str | dict[str, Any]) -> Method:
    """The method that `Method.to_json` wrote. JSON is data: nothing in it is ever executed."""
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise ConfigError('a method is an object with a "method" name, e.g. {"method": "fastv", "keep": 0.5}')
    options = {str(key): value for key, value in data.items() if key != "method"}
    if data["method"] == "composed":
        parts = options.pop("methods", None)
        if options or not isinstance(parts, list):
            raise ConfigError('"composed" has one option, "methods": a list of methods')
        return Composed(tuple(method_from_json(part) for part in parts))
    return make(data["method"], **options)
