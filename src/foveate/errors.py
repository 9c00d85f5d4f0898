"""What foveate raises. Every message says what was wrong and what would be right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class FoveateError(Exception):
    """Base of every error that foveate raises on purpose."""


class UnknownNameError(FoveateError, KeyError):
    """A method, family or signal name that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class ConfigError(FoveateError, ValueError):
    """An option of a method is missing, unknown, of the wrong type or out of range."""


class UnsupportedModelError(FoveateError):
    """The model's family, state (compiled, already attached) or attention kernel cannot be compressed."""


class UnsupportedSiteError(FoveateError):
    """The model has no such layer or block, or a reduction there would never be seen by the language model."""


class UnsupportedCacheError(FoveateError):
    """The KV cache given cannot hold layers of different length."""


class AdapterError(FoveateError):
    """A trained adapter cannot be found or read, or does not fit the model."""


class TrainingError(FoveateError, ValueError):
    """A recipe, a data set or a folder cannot be trained with."""


class InputError(FoveateError, ValueError):
    """The inputs of a forward contradict what the vision tower produced."""


def shown(value: object) -> str:
    """Return a value that was given, to be quoted in a sentence of ours, whatever its size."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python prints no number of thousands of digits
        return "a number of very many digits" if isinstance(value, int) else f"a {type(value).__name__} of great size"
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (the nearest is 'layer')``, to follow a name that does not exist; empty where none is near."""
    found = get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" (the nearest is {found[0]!r})" if found else ""


def in_lines(name: object, wrong: Sequence[tuple[int, str]], line: str = "line", most: int = 10) -> str:
    """Return what is wrong in a file, as ``(number of a line, sentence)``: all in one go, or the first ``most`` of them."""
    if len(wrong) == 1:
        return f"{line} {wrong[0][0]} of {str(name)!r}: {wrong[0][1]}"
    said = [f"{line} {number}: {why}" for number, why in wrong[:most]]
    more = [f"and {len(wrong) - most} more"] if len(wrong) > most else []
    return "\n  ".join([f"{len(wrong)} {line}s of {str(name)!r} are wrong:", *said, *more])


def first_line(error: BaseException) -> str:
    """Return what an error of others says, in one line, to be quoted in a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def ours_in(error: BaseException) -> FoveateError | None:
    """Find the error of ours that another library has raised again, perhaps in a report of pydantic; None: there is none."""
    if isinstance(error, FoveateError):
        return error
    details: Any = getattr(error, "errors", None)
    for detail in details() if callable(details) else ():
        inner = detail.get("ctx", {}).get("error")
        if isinstance(inner, FoveateError):
            return inner
    return None
