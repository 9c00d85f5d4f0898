"""What ``foveate bench`` is asked for: its options, each declared once, and checked before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from foveate.errors import ConfigError
from foveate.lab import completion, needs, outputs
from foveate.lab.checks import DENSE, SHAPES, check_all, check_attn, check_device, check_dtype, check_model, check_shape
from foveate.lab.terminal import CommandError, check_once
from foveate.lab.typed import (
    MACHINE,
    MANY_AS_JSON,
    OPTION_OF_MANY,
    OUTPUT,
    QUESTIONS,
    SUMS_TOO,
    Attn,
    Device,
    Dtype,
    NewTokens,
    Overwrite,
    keep_option,
    method_option,
    options,
    out_option,
    seed_option,
)
from foveate.serialise import from_json, read_text

#: Without a model: what a CPU does in a few minutes.
SHAPE = "small-qwen2.5-vl"
#: What a picture can be.
KINDS = (".png", ".pdf", ".svg")
#: Nobody means more than this, of anything.
MOST = 10**9


@dataclass(frozen=True)
class Request:
    """What to measure; several methods, shares, sizes and models are all measured with each other."""

    out: Annotated[
        Path,
        out_option("JSON of every measurement; a run that was stopped goes on there."),
    ] = Path("bench.json")
    tokens: Annotated[
        tuple[int, ...],
        Option(
            help="About how many visual tokens a row has; repeatable.",
            show_default="256, 1024, 4096",
            rich_help_panel=QUESTIONS,
        ),
    ] = (256, 1024, 4096)
    batches: Annotated[
        tuple[int, ...],
        Option(
            "--batch-size",
            "-b",
            help="How many rows a call has; repeatable.",
            show_default="1",
            rich_help_panel=QUESTIONS,
        ),
    ] = (1,)
    new_tokens: NewTokens = 16
    steps: Annotated[
        int,
        Option(
            help="How many pairs of decoding steps are timed, of stock model and method in turn; 0: none.",
            rich_help_panel=QUESTIONS,
        ),
    ] = 16
    repeats: Annotated[
        int,
        Option(help="How many rounds; in each the stock model and every method run once.", rich_help_panel=QUESTIONS),
    ] = 5
    seed: Annotated[int, seed_option("Decides the weights, the pixels and the order.")] = 0
    methods: Annotated[tuple[str, ...], method_option(SUMS_TOO, DENSE, default="three controls, luvc, ipcv, adsc")] = ()
    keeps: Annotated[
        tuple[float, ...],
        keep_option("Measure each method at this share of the tokens; repeatable."),
    ] = ()
    options: Annotated[tuple[str, ...], OPTION_OF_MANY] = ()
    described: Annotated[tuple[str, ...], MANY_AS_JSON] = ()
    shapes: Annotated[
        tuple[str, ...],
        Option(
            "--shape",
            help="A model with random weights in this shape, e.g. qwen2.5-vl-7b; repeatable.",
            show_default=SHAPE,
            rich_help_panel=MACHINE,
            autocompletion=completion.among(*SHAPES),
        ),
    ] = ()
    models: Annotated[
        tuple[str, ...],
        Option(
            "--model",
            "-m",
            help="A real model: folder or hub id; repeatable.",
            rich_help_panel=MACHINE,
            autocompletion=completion.a_model,
        ),
    ] = ()
    dtype: Dtype = "auto"
    device: Device = "auto"
    attn: Attn = None
    source: Annotated[
        Path | None, Option("--from", help="Measure nothing, and show this result.", rich_help_panel=OUTPUT)
    ] = None
    plot: Annotated[
        Path | None, Option(help="Draw the sweep into this file (.png, .pdf or .svg).", rich_help_panel=OUTPUT)
    ] = None
    table: Annotated[
        Path | None, Option(help="Write the tables into this file, as Markdown.", rich_help_panel=OUTPUT)
    ] = None
    overwrite: Overwrite = False

    @property
    def names(self) -> tuple[str, ...]:
        """What is measured, shapes first."""
        return (*self.shapes, *self.models) or (SHAPE,)


def check(request: Request) -> None:
    """Raise `CommandError` for what cannot be meant or written: nobody should wait for torch to hear it."""
    described = _check_measured if request.source is None else _check_source
    check_all(lambda: _check_shown(request), lambda: described(request))


def _check_measured(request: Request) -> None:
    check_all(
        lambda: check_methods(request),
        lambda: check_dtype(request.dtype),
        lambda: _check_device(request.device),
        lambda: check_attn(request.attn),
        *(partial(check_shape, name) for name in request.shapes),
        *(partial(check_model, name) for name in request.models),
        lambda: check_once(shape=request.shapes, model=request.models, method=request.methods, option=request.options),
        lambda: check_once(keep=request.keeps, tokens=request.tokens, **{"batch-size": request.batches}),
        lambda: _check_numbers(request),
        lambda: _check_writable("out", request.out),
        lambda: _check_out(request),
    )


def _check_device(name: str) -> None:
    check_device(name)
    if name.partition(":")[0] not in ("auto", "cpu", "cuda"):
        raise CommandError(f"--device {name!r}: times and memory are measured on cpu and cuda only")


def _check_out(request: Request) -> None:
    """Raise `CommandError` for a file of another run, as far as it says so itself; the run looks at the rest."""
    if request.overwrite or not os.path.isfile(request.out):  # unlike Path.is_file, also of a name that is too long
        return
    try:
        data = from_json(read_text(request.out))
        there = data["settings"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f": {error}" if isinstance(error, ConfigError) else ""
        raise outputs.taken(request.out, f"is not a result of `foveate bench`{why}") from None
    for name in ("new_tokens", "seed", "dtype", "attn"):
        if there.get(name) != getattr(request, name):
            raise outputs.of_another_run(request.out, name, there.get(name), getattr(request, name))
    if request.methods and not request.described:
        wanted = {part.strip() for name in request.methods if name != DENSE for part in name.lower().split("+")}
        had = {part for each in there.get("methods", {}).values() for part in _parts(each)}
        if wanted != had:
            raise outputs.of_another_run(request.out, "methods", sorted(had), sorted(wanted))


def _parts(method: object) -> list[str]:
    """The names in what a result says of a method, or of a sum; of the stock model, none."""
    if not isinstance(method, dict):
        return []
    inner = method.get("methods")
    return [part for each in inner for part in _parts(each)] if isinstance(inner, list) else [str(method.get("method"))]


def _check_numbers(request: Request) -> None:
    numbers: dict[str, Sequence[int]] = {"tokens": request.tokens, "batch-size": request.batches}
    numbers |= {"repeats": [request.repeats], "new-tokens": [request.new_tokens]}
    for name, counts in numbers.items():
        for count in counts:
            if count < 1:
                raise CommandError(f"--{name} {count}: give a number above 0")
            if count > MOST:
                raise CommandError(f"--{name} {count}: give a number up to {MOST}")
    if not 0 <= request.steps <= MOST:
        raise CommandError(f"--steps {request.steps}: give a number from 0 to {MOST}")
    if not 0 <= request.seed < 2**63:
        raise CommandError(f"--seed {request.seed}: give a number from 0 to 2**63 - 1")


def check_methods(request: Request) -> None:
    """Raise `CommandError` for options of no method, or for nothing to compare the stock model with."""
    named = [name for name in request.methods if name != DENSE]
    if request.options and not (request.methods or request.described):
        raise CommandError(f"--option {request.options[0]!r} belongs to a method: say --method, too")
    if request.keeps and not named and (request.methods or request.described):
        raise CommandError("--keep belongs to --method: write it into the JSON of --method-json")
    if request.methods and not (named or request.described):
        raise CommandError(
            "there is nothing to compare the stock model with: say --method, or leave --method dense out"
        )


def _check_shown(request: Request) -> None:
    """Raise `CommandError` if picture or tables cannot be written: better before a long run than after it."""
    if request.plot is not None:
        needs.check("matplotlib", "--plot")
        if request.plot.suffix not in KINDS:
            raise CommandError(f"--plot {str(request.plot)!r}: give a name that ends in {', '.join(KINDS)}")
    measured = ("out", request.out) if request.source is None else ("from", request.source)
    taken: dict[str, str] = {}
    for option, path in (measured, ("plot", request.plot), ("table", request.table)):
        other = option if path is None else taken.setdefault(os.path.realpath(path), option)
        if other != option:  # the measurements would be gone
            raise CommandError(f"--{option} {str(path)!r} is the file of --{other}: give another name")
    for option, shown in (("plot", request.plot), ("table", request.table)):
        if shown is not None:
            _check_writable(option, shown)
            outputs.check_new(option, shown, request.overwrite or _is_own(request, shown))


def name_of(shown: Path, result: Path) -> str:
    """As `foveate.lab.bench.result.Result.shown` has it."""
    return Path(os.path.relpath(os.path.realpath(shown), os.path.realpath(result.parent))).as_posix()


def _is_own(request: Request, shown: Path) -> bool:
    """Whether a picture or table was made of the result with which the run goes on."""
    try:
        return request.source is None and name_of(shown, request.out) in from_json(read_text(request.out))["shown"]
    except (OSError, ValueError, TypeError, KeyError):  # there is none, or an older one
        return False


def _check_writable(option: str, path: Path) -> None:
    folder = path.parent
    try:
        if not folder.is_dir():
            raise CommandError(f"there is no folder {str(folder)!r} for --{option} {path.name!r}: make it first")
        allowed = not path.is_dir() and (outputs.takes_more(path) if path.exists() else outputs.takes_files(folder))
        # The result is written next to its place and moved there.
        allowed = allowed and (option != "out" or outputs.takes_files(folder))
    except OSError:  # a name that is too long
        allowed = False
    if not allowed:
        raise CommandError(f"--{option} {str(path)!r} cannot be written: give the name of a file")


def _check_source(request: Request) -> None:
    """Raise `CommandError` if a run is described, too, when a result is only to be shown again."""
    source = Path(str(request.source))
    if not os.path.exists(source):  # unlike Path.exists, also of a name that is too long
        raise CommandError(f"there is no result {str(source)!r}: `foveate bench --out {source}` makes one")
    for name, flag, _, default in options(Request):
        if name not in ("out", "source", "plot", "table", "overwrite") and getattr(request, name) != default:
            raise CommandError(
                f"--from shows what was measured before: it takes --plot, --table, --overwrite and --json, and not {flag}"
            )
