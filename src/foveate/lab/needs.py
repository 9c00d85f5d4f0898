"""What only some commands need: packages that may be missing, and the sentence that says how to get each."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from foveate import extras
from foveate.lab.terminal import CommandError

#: Modules whose absence is nobody's mistake.
OPTIONAL = (*extras.EXTRAS, extras.REFERENCE)


def is_there(module: str) -> bool:
    """Whether a package can be imported; it is not imported now."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that somebody else has made
        return True


def command(module: str) -> str:
    """What installs a package here; every hint of the lab is made by this."""
    return extras.install(module)


def check(module: str, what: str) -> None:
    """Raise `CommandError` if a package is missing that ``what`` needs."""
    if not is_there(module):
        raise missing(module, what)


def missing(module: str, what: str) -> CommandError:
    """What to say where a package is missing."""
    extra = extras.EXTRAS.get(module)
    besides = f"; in a checkout of foveate, '.[{extra}]' has all that such commands need" if extra else ""
    return CommandError(f"{what} needs {module}, which is not installed: {command(module)} gets it{besides}")


def reference() -> ModuleType:
    """The package of the reference models."""
    check("foveate_reference", "this, which asks a reference model or its questions,")
    import foveate_reference

    return foveate_reference
