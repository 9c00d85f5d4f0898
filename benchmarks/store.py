"""The result store: ``experiments/<name>.yaml`` -> ``results/<name>.json`` -> tables in README and docs.

    python benchmarks/store.py run NAME      # run an experiment, keep its result, write its tables
    python benchmarks/store.py tables        # write every table and picture from the results
    python benchmarks/store.py check         # fail if one of them is not what its result says
    python benchmarks/store.py adopt NAME FILE   # keep a result that was measured outside of the store
    python benchmarks/store.py list

``make result NAME=...``, ``make tables`` and ``make results-check`` do the first three. See docs/results.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.errors import FoveateError
from foveate.lab import terminal

from stored import running
from stored.pages import Pages

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
pages = Pages(Path(__file__).resolve().parents[1])


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Of the experiment.")],
    again: Annotated[bool, typer.Option("--again", help="Begin anew what was interrupted.")] = False,
) -> None:
    """Run an experiment, keep its result, and write the tables that show it."""
    result = running.run(pages.experiment(name), pages.root, pages.results, again)
    terminal.note(f"kept: benchmarks/results/{name}.json" + (" (of a checkout with changes)" if result.dirty else ""))
    for problem in _write():
        terminal.note(problem)


@app.command()
def adopt(
    name: Annotated[str, typer.Argument(help="Of the experiment.")],
    file: Annotated[Path, typer.Argument(help="The JSON that its command wrote.")],
) -> None:
    """Keep a result that was measured outside of the store, with what its JSON says of how; the rest is null."""
    running.adopt(pages.experiment(name), pages.root, pages.results, file)
    for problem in _write():
        terminal.note(problem)


@app.command()
def tables() -> None:
    """Write every table and picture from the results."""
    problems = _write()
    if problems:
        raise terminal.CommandError("; ".join(problems))


@app.command()
def check() -> None:
    """Compare every table with its result."""
    problems = list(pages.problems())
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    for remark in pages.remarks():
        terminal.note(remark)
    terminal.note(f"{len(pages.experiments)} experiments: every table is what its result says")


@app.command("list")
def names() -> None:
    """Names of the experiments, and what each measures."""
    for name, experiment in pages.experiments.items():
        print(f"{name:<32} {experiment.says}")


def _write() -> list[str]:
    """Why tables could not be written, if some could not."""
    changed, problems = pages.write()
    terminal.note(f"changed: {', '.join(str(path.relative_to(pages.root)) for path in changed) or 'nothing'}")
    return problems


if __name__ == "__main__":
    try:
        app()
    except FoveateError as error:
        terminal.fail(error)
        raise SystemExit(2) from None
