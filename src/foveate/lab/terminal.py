"""What the commands share: two consoles, JSON on stdout, quiet libraries."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import foveate
from foveate.errors import FoveateError

#: Results go to stdout; progress, notes and errors to stderr, so that stdout can be piped.
out = Console(highlight=False)
log = Console(stderr=True, highlight=False)

#: Seconds between two lines of a `Bar` that is not watched.
EVERY = 10.0


class CommandError(FoveateError):
    """A command was given something that it cannot use: a missing file, an empty prompt, an unknown model."""


#: Consoles of the bars that are drawn now: what is said meanwhile goes above the last one.
_bars: list[Console] = []
#: What `warn_once` has said in this command.
_said: set[str] = set()


def note(text: str) -> None:
    """One line of progress."""
    _said_on().print(escape(text), style="dim", soft_wrap=True)


def warn(text: str) -> None:
    """One line that should not be missed."""
    _said_on().print(f"[yellow]{escape(text)}[/yellow]", soft_wrap=True)


def warn_once(text: str) -> None:
    """The same of what several parts of a command may say: once."""
    if text not in _said:
        _said.add(text)
        warn(text)


@contextmanager
def warnings_of_ours() -> Iterator[None]:
    """Inside, a Python warning that the library gives is one line, each text once; those of others are as they were."""
    ours = os.path.dirname(foveate.__file__)
    _said.clear()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
            if not filename.startswith(ours):
                shown(message, category, filename, lineno, file, line)
            else:
                warn_once(f"warning: {message}")

        warnings.showwarning = show
        yield


def fail(error: FoveateError) -> None:
    """One red sentence."""
    log.print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)


def _said_on() -> Console:
    return _bars[-1] if _bars else log


def emit(data: Any) -> None:
    """Plain data as JSON, and nothing else, on stdout."""
    try:
        text = json.dumps(data, indent=2, allow_nan=False)
    except ValueError:
        raise CommandError(
            "the result has an infinite number or NaN, which JSON cannot say: leave --json out"
        ) from None
    print(text)


def check_once(**given: Sequence[Any]) -> None:
    """Raise `CommandError` where an option that may be repeated says the same twice; of ``name=value``, the name."""
    for name, values in given.items():
        words = [value.partition("=")[0].strip() if name in ("option", "profile", "set") else value for value in values]
        for word in words:
            if words.count(word) > 1:
                raise CommandError(f"--{name} {word} is given twice")


def quiet_libraries(bars: bool = False) -> None:
    """Keep warnings of transformers (that it works without torchvision, for one) out of a command's output.

    Args:
        bars: leave its download bars on, where a person watches.
    """
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers import logging

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
        hub_logging.set_verbosity_error()
    if not (bars and sys.stderr.isatty()):
        logging.disable_progress_bar()
        disable_progress_bars()


class Bar:
    """A progress bar on stderr; where nobody watches, in a log, a line now and then."""

    def __init__(self) -> None:
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        # A console of its own: it goes on where it began, even if somebody sends stderr elsewhere meanwhile.
        console = Console(file=sys.stderr, highlight=False)
        others = os.environ.get("RANK", "0") != "0"  # of several processes only the first one draws
        # Not `console.is_terminal`: with FORCE_COLOR, as on many build machines, a file is called a terminal, too.
        watched = sys.stderr.isatty()
        self._drawn, self._lines = watched and not others, not watched and not others
        self._said, self._at = "", -EVERY
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("", total=1.0)

    def tell(self, what: str, done: float) -> None:
        """What happens now, and the share of the work that is done."""
        self._progress.update(self._task, description=escape(what), completed=done)
        if self._lines and what != self._said and time.monotonic() - self._at >= EVERY:
            self._said, self._at = what, time.monotonic()
            note(f"{done:4.0%} {what}")

    def __enter__(self) -> Bar:
        if self._drawn:
            self._progress.start()
            _bars.append(self._progress.console)
        return self

    def __exit__(self, *error: object) -> None:
        if self._drawn:  # rich 13.8 ends what was never drawn with an empty line
            _bars.remove(self._progress.console)
            self._progress.stop()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns: the first one left, all others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column left, all others right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
