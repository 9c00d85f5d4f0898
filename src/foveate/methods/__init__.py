"""One file per published method; `list_methods` finds them, nothing lists them."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from foveate.errors import ConfigError, UnknownNameError, nearest
from foveate.method import Method
from foveate.plugins import defined_in, plugins
from foveate.serialise import from_json
from foveate.sums import Composed

_FILES = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]


@cache
def own_methods() -> dict[str, type[Method]]:
    """Name -> class of every method in the files of this package."""
    return {cls.name(): cls for file in _FILES for cls in defined_in(file)}


@cache
def list_methods() -> dict[str, type[Method]]:
    """Name -> class of every method: those of this package, and of others that have registered theirs (`foveate.plugins`)."""
    return dict(sorted({**own_methods(), **plugins(own_methods())}.items()))


def method_class(name: str) -> type[Method]:
    """Return the class of a method by its name; `UnknownNameError` lists what there is."""
    known = own_methods() if name.lower() in own_methods() else list_methods()
    if name.lower() not in known:
        hint = nearest(name, known) if name else " (a sum has one on both sides of every +)"
        raise UnknownNameError(f"there is no method {name!r}{hint}; there are {', '.join(known)}")
    return known[name.lower()]


def make(name: str, /, **options: Any) -> Method:
    """Return a method by name: ``make("fastv", keep=0.5)``; several joined by ``+`` take no other option than ``keep``."""
    if "+" in name:
        if any(option != "keep" for option in options):
            raise ConfigError("options of a sum, but for keep, are ambiguous: build each method and add them with `+`")
        return Composed(tuple(make(part.strip()) for part in name.split("+")), **options)
    return method_class(name).from_options(options)


def method_from_dict(data: str | dict[str, Any]) -> Method:
    """Return the method that `Method.to_dict` made plain, or the same as JSON. It is data: nothing in it is ever executed."""
    try:
        return _from_data(from_json(data) if isinstance(data, str) else data)
    except RecursionError:
        raise ConfigError("sums are nested too deeply: list the methods of a sum side by side") from None


def _from_data(data: Any) -> Method:
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise ConfigError('a method is an object with a "method" name, e.g. {"method": "fastv", "keep": 0.5}')
    options = {str(key): value for key, value in data.items() if key != "method"}
    if data["method"] == "composed":
        parts = options.pop("methods", None)
        if options.keys() - {"keep"} or not isinstance(parts, list):
            raise ConfigError('"composed" has the options "methods", a list of methods, and "keep", for all of them')
        return Composed(tuple(map(_from_data, parts)), **options)
    return make(data["method"], **options)
