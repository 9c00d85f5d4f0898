"""Dataclasses from plain data (JSON, command lines), strictly: unknown names and wrong types are errors."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from foveate.errors import ConfigError, nearest, shown

T = TypeVar("T")


_LARGEST = 2**63 - 1  # what a tensor, and a random generator, can hold
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}
_EXAMPLES: dict[Any, str] = {int: "3", float: "0.5"}
_OPTIONS: dict[type, Mapping[str, tuple[Any, Any]]] = {}  # reading annotations takes milliseconds


def read_text(path: Path) -> str:
    """Return what is in a file. What is no text, as an image, raises `ConfigError`, which reads better than the codec's own."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError("it is not text in UTF-8") from None


def from_json(text: str) -> Any:
    """Return what JSON says. Broken JSON, and numbers that no float can hold, raise `ConfigError`."""
    try:
        return json.loads(text, parse_int=_whole, parse_float=_finite)
    except json.JSONDecodeError as error:
        line = "" if error.lineno == 1 else f"line {error.lineno}, "
        raise ConfigError(f"not JSON: {error.msg}: {line}column {error.colno}") from None
    except RecursionError:
        raise ConfigError("not JSON that can be read: it is nested too deeply") from None


def _whole(digits: str) -> int:
    _finite(digits)
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ConfigError(f"the number {digits[:20]}{'...' * (len(digits) > 20)} is too large: give a smaller one")
    return number


def options_of(cls: type) -> Mapping[str, tuple[Any, Any]]:
    """``name -> (type, default)`` of a dataclass's fields; ``dataclasses.MISSING`` if there is no default."""
    if cls not in _OPTIONS:
        hints = typing.get_type_hints(cls)
        _OPTIONS[cls] = {f.name: (hints[f.name], f.default) for f in dataclasses.fields(cls) if f.init}
    return _OPTIONS[cls]


def build(cls: type[T], data: dict[str, Any]) -> T:
    """``cls(**data)`` after checking every name and type."""
    known = options_of(cls)
    for name in data:
        if name not in known:
            raise ConfigError(
                f"{cls.__name__} has no option {name!r}{nearest(name, known)}; it has {', '.join(known) or 'none'}"
            )
    return cls(**{name: _check(value, known[name][0], f"{cls.__name__}.{name}") for name, value in data.items()})


def check(instance: Any) -> None:
    """Raise `ConfigError` if a plain field of a dataclass instance is not what its annotation says; make a list a tuple."""
    for name, (hint, _) in options_of(type(instance)).items():
        if _is_plain(hint):
            value = getattr(instance, name)
            checked = _check(value, hint, f"{type(instance).__name__}.{name}")
            if isinstance(value, (list, tuple)):  # lists are in it, or it is one
                object.__setattr__(instance, name, checked)


def plain(value: Any) -> Any:
    """Tuples to lists, dataclasses to dicts; the rest is already plain."""
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def _is_plain(hint: Any) -> bool:
    """Tell whether JSON can say a value of this type."""
    if typing.get_origin(hint) is Literal:
        return True
    arguments = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    return all(map(_is_plain, arguments)) if arguments else hint in (int, float, bool, str, type(None))


def _check(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        number = next((option for option in (float, int) if option in args), None)
        if number is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
            return _check(value, number, where)
        if value is not None and len(args) == 2 and type(None) in args:
            return _check(value, next(option for option in args if option is not type(None)), where)
        for option in args:
            try:
                return _check(value, option, where)
            except ConfigError:
                continue
        raise _wrong(value, hint, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}={shown(value)}: choose one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, hint, where)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_check(item, args[0], where) for item in value)
        if len(value) != len(args):
            raise _wrong(value, hint, where)
        return tuple(_check(item, arg, where) for item, arg in zip(value, args))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{where}={shown(value)}: give a finite number, such as {_example(float)}")
        return float(value)
    if hint is int and isinstance(value, int) and abs(value) > _LARGEST:
        raise ConfigError(f"{where}={shown(value)}: give a whole number of at most {_LARGEST}")
    if hint is type(None) or hint is None:
        if value is not None:
            raise _wrong(value, hint, where)
        return None
    if not isinstance(hint, type) or not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(value, hint, where)
    return value


def _wrong(value: Any, hint: Any, where: str) -> ConfigError:
    """Say what was given, what is right, and an example of it as JSON and command lines spell it."""
    example = _example(hint)
    such = f", such as {example}" if example else ""
    return ConfigError(f"{where}={shown(value)}: give {in_words(hint)}{such}")


def in_words(hint: Any) -> str:
    """``float | None`` -> ``a number``: what values of a type are, but for None."""
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(part) for part in parts if part is not type(None))
    if origin is Literal:
        *others, last = map(str, parts)
        return f"{', '.join(others)} or {last}" if others else last
    if origin is tuple and parts[-1] is Ellipsis:
        return _MANY.get(parts[0]) or f"a list of {in_words(parts[0])}"
    if origin is tuple:
        return f"[{', '.join(map(in_words, parts))}]"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def _example(hint: Any) -> str:
    """Return a value of a type as JSON has it; empty where the words for the type name its values, or there is none."""
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return next(filter(None, map(_example, parts)), "")
    if origin is tuple:
        items = [
            json.dumps(part.__args__[0]) if typing.get_origin(part) is Literal else _example(part) for part in parts
        ]
        return f"[{', '.join(filter(None, items))}]"
    return _EXAMPLES.get(hint, "")
