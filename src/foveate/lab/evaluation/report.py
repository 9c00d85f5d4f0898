"""A result for people, whatever was measured: as Markdown, on a terminal, and the files that a run leaves in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape

from foveate.lab import needs, outputs
from foveate.lab.evaluation.curve import can_draw
from foveate.lab.evaluation.store import JSON, MARKDOWN
from foveate.lab.terminal import CommandError, aligned, markdown_table, note

#: Text, plain data, or a function that draws at a path.
Content = str | dict[str, Any] | Callable[[Path], None]

CURVE = outputs.CURVE


@dataclass(frozen=True)
class Table:
    """A table, with a title and what is said around it; ``shown``: on a terminal, too."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    before: str = ""
    after: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Report:
    """What is said of a result.

    Attributes:
        title: of the page; ``command``: what repeats the run; ``summary``: what was asked.
        tables: the first one comes before everything else that is said.
        remarks: what a reader must know to read them.
        answer: what was looked for, in a line of its own, if anything was; ``verdict``: what it is worth.
        drawn: whether a picture belongs to it.
    """

    title: str
    command: str
    summary: str
    tables: tuple[Table, ...]
    remarks: tuple[str, ...]
    answer: str = ""
    verdict: tuple[str, ...] = ()
    drawn: bool = False


class Found(Protocol):
    """What a run found."""

    @property
    def out(self) -> Path: ...
    def to_dict(self) -> dict[str, Any]: ...
    def report(self) -> Report: ...
    def files(self) -> Mapping[str, Content]: ...


def write(found: Found) -> list[Path]:
    """Write JSON, Markdown and whatever else belongs to the result into the folder of the run."""
    return write_files(found.out, {JSON: found.to_dict(), MARKDOWN: markdown(found.report()), **found.files()})


def write_files(folder: Path, files: Mapping[str, Content]) -> list[Path]:
    """Write text, plain data as JSON, and what a function draws at a path; the paths, in this order.

    Raises:
        CommandError: the folder takes no files.
    """
    paths = {folder / name: content for name, content in files.items()}
    try:
        for path, content in paths.items():
            if callable(content):
                content(path)
            elif isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            else:
                path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write the report to {str(folder)!r}: {error}") from None
    return list(paths)


def markdown(report: Report) -> str:
    """A page."""
    first, *others = report.tables
    lines = [f"# {report.title}", "", f"    {report.command}", "", report.summary, ""]
    lines += [f"    {report.answer}", ""] if report.answer else []
    lines += markdown_table(first.columns, first.rows)
    lines += ["", *(f"* {line}" for line in (*report.verdict, *report.remarks))]
    for table in others:
        lines += ["", f"## {table.title}", "", *([table.before, ""] if table.before else [])]
        lines += [*markdown_table(table.columns, table.rows), *(["", table.after] if table.after else [])]
    return "\n".join(lines) + "\n"


def show(report: Report, written: Sequence[Path], console: Console) -> None:
    """Print it; a table of rich would be cut where there is no terminal."""

    def say(text: str, style: str | None = None) -> None:
        console.print(escape(text), style=style, soft_wrap=True)

    say(report.summary)
    if report.answer:
        say(report.answer, "bold")
    for table in report.tables:
        if table.shown:
            say("")
            for line in aligned([table.columns, *table.rows]):
                say(line)
    say("")
    for line in report.verdict:
        say(line)
    for line in report.remarks:
        say(line, "dim")
    say("\nwritten: " + ", ".join(map(str, written)))
    if report.drawn and not can_draw():
        note(
            f"no picture was drawn, which needs matplotlib: {needs.command('matplotlib')}, then the same command draws it"
        )


def short(budget: float | None) -> str:
    """A budget in a table."""
    return "-" if budget is None else f"{budget:.3g}"


def percent(value: float) -> str:
    """A share in a table."""
    return f"{value:.1%}"
