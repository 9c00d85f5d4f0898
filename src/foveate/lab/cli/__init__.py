"""The command ``foveate``. No logic here: each command hands over to a module, imported when it is needed.

`asking` has the commands that ask a model, `measuring` those that compare methods, `training` and `listing` the others. Their
options are declared where they are shared, in `foveate.lab.typed`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer

from foveate.errors import FoveateError
from foveate.lab import needs, outputs, terminal
from foveate.lab.cli import asking, listing, measuring, training
from foveate.lab.cli.once import Commands, Once

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Vision-language models with fewer vision tokens, without retraining.",
)
eval_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Measure what methods lose at given budgets.")
train_app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Train a reference model from nothing, or any model to work with fewer tokens.",
)


def main() -> None:
    """Entry point: mistakes of the user are one sentence, not a traceback."""
    try:
        with terminal.warnings_of_ours():
            _command()()
    except FoveateError as error:
        terminal.fail(error)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in needs.OPTIONAL:
            raise
        terminal.fail(needs.missing(module, "this"))
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        terminal.fail(terminal.CommandError(f"no file has so long a name: {str(error.filename)[:60]!r}..."))
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C
            terminal.note(
                "stopped" + ("; what is done is kept, and the same command goes on" if outputs.is_kept() else "")
            )
        raise


@cache
def _command() -> Callable[[], object]:
    """What typer makes of `app`, which takes a moment: once, however often a process is asked."""
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from foveate import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _add(to: typer.Typer, name: str, run: Callable[..., None], *examples: str, **settings: Any) -> None:
    """A command, and what its ``--help`` ends with."""
    shown = "\n\n".join(["Examples:" if len(examples) > 1 else "Example:", *(f"$ {line}" for line in examples)])
    to.command(name, cls=Once, epilog=shown if examples else None, **settings)(run)


_add(app, "demo", asking.demo, "foveate demo --quick")
_add(
    app,
    "run",
    asking.run,
    "foveate run -i cat.jpg -p 'What is it?' -M fastv -k 0.3 -m Qwen/Qwen2.5-VL-3B-Instruct",
    "foveate run -d questions.jsonl -M divprune -k 0.25 -b 16 -o answers.jsonl",
)
_add(app, "report", asking.report, "foveate report -i cat.jpg -p 'What is it?' -M luvc -M ipcv+adsc -o cat.html")
_add(
    app,
    "serve",
    asking.serve,
    "foveate serve Qwen/Qwen2.5-VL-7B-Instruct -M luvc -k 0.5 --max-model-len 8192",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
_add(app, "methods", listing.methods, "foveate methods fastv", "foveate methods --site tower --search merge")
_add(app, "families", listing.families, "foveate families", "foveate families --inspect my-model")
app.add_typer(eval_app, name="eval")
_add(eval_app, "reference", measuring.reference, "foveate eval reference -M tome -M random --budget 0.5 -t color")
_add(
    eval_app,
    "tasks",
    measuring.tasks,
    "foveate eval tasks -m Qwen/Qwen2.5-VL-7B-Instruct -t mme -M luvc --budget 0.5 -b 8",
)
_add(
    eval_app,
    "fidelity",
    measuring.fidelity,
    "foveate eval fidelity -m Qwen/Qwen2.5-VL-3B-Instruct -d questions.jsonl -M luvc --budget 0.5",
)
_add(
    app,
    "leaderboard",
    measuring.leaderboard,
    "foveate leaderboard -m reference-llava -o llava --plan",
    "foveate leaderboard -m reference-llava -o llava -M fastv --option layer=4",
    "foveate leaderboard --from llava --from qwen -o both",
)
_add(
    app,
    "bench",
    measuring.bench,
    "foveate bench --shape qwen2.5-vl-7b -M luvc -k 0.5 --tokens 1024 --device cuda --plot bench.png",
    "foveate bench --from bench.json --table bench.md",
)
_add(
    app,
    "tune",
    measuring.tune,
    "foveate tune -m Qwen/Qwen2.5-VL-3B-Instruct -d questions.jsonl -M fastv --budget 0.5",
)
app.add_typer(train_app, name="train")
_add(train_app, "reference", training.reference, "foveate train reference -o run --recipe llava")
for _name, _says in training.trainable().items():
    _add(
        train_app,
        _name,
        training.method(_name, _says),
        f"foveate train {_name} -m llava-hf/llava-1.5-7b-hf -d chats.jsonl -o trained --set lr=1e-4 --set steps=500",
    )
