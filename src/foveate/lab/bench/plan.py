"""What is measured: models, methods, and the sizes of the calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from foveate.lab.bench import plot
from foveate.lab.bench.result import DENSE
from foveate.lab.bench.shapes import SHAPES, config_of
from foveate.lab.checks import check_dtype
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError, check_once
from foveate.lab.words import options_by_method
from foveate.method import Method

#: Without a method: controls, and the systems that this library is built around.
DEFAULT = ("random", "stride", "downsample", "luvc", "ipcv", "adsc")
#: Without sizes: what a CPU does in a few minutes.
SHAPE, TOKENS, BATCHES = "small-qwen2.5-vl", (256, 1024, 4096), (1,)
#: Nobody means more than this, of anything.
MOST = 10**9
#: Fields of `Request` that are not named after their option.
OPTIONS = dict(shapes="shape", models="model", methods="method", keeps="keep", options="option")
OPTIONS |= dict(described="method-json", batches="batch", new_tokens="new-tokens")


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        out: the JSON file of the result; a run stopped there goes on.
        shapes, models: what to measure it on: `SHAPES` with random weights; folders, hub ids or reference models.
        methods, options, described: by name, ``name=value`` for them, and as JSON or files of it.
        keeps: values of the option ``keep`` that every method by name is measured at; none: its default.
        tokens, batches: visual tokens of a row, about; rows of a call. None: `TOKENS`, `BATCHES`.
        repeats: timed rounds; in each one the stock model and every method run once.
        new_tokens: that a call generates.
        steps: pairs of single steps, a stock one and one of a method, after the rounds; 0: none.
        dtype, device, attn: of the model; ``auto`` is float32 on a CPU and bfloat16 elsewhere for a shape.
        seed: of weights, pixels and the order within rounds.
        source: a result to show again; nothing is measured then.
        plot, table: files for the picture, and for the tables as Markdown.
    """

    out: Path
    shapes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    keeps: tuple[float, ...] = ()
    options: tuple[str, ...] = ()
    described: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    repeats: int = 5
    new_tokens: int = 16
    steps: int = 16
    dtype: str = "auto"
    device: str = "auto"
    attn: str | None = None
    seed: int = 0
    source: Path | None = None
    plot: Path | None = None
    table: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", self.tokens or TOKENS)
        object.__setattr__(self, "batches", self.batches or BATCHES)

    @property
    def names(self) -> tuple[str, ...]:
        """What is measured, shapes first."""
        return (*self.shapes, *self.models) or (SHAPE,)


def check(request: Request) -> None:
    """Raise `CommandError` for what cannot be meant; nothing is loaded."""
    check_dtype(request.dtype)
    for name in request.shapes:
        config_of(name)
    for name in request.models:
        if name in SHAPES:
            raise CommandError(f"--model {name!r} is a shape: say --shape {name}")
    check_once(shape=request.shapes, model=request.models, method=request.methods, option=request.options)
    check_once(keep=request.keeps, tokens=request.tokens, batch=request.batches)
    numbers: dict[str, Sequence[int]] = {"tokens": request.tokens, "batch": request.batches}
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
    _check_writable("out", request.out)


def check_shown(request: Request) -> None:
    """Raise `CommandError` if picture or tables cannot be written: better before a long run than after it."""
    if request.plot is not None:
        plot.require()
        if request.plot.suffix not in plot.KINDS:
            raise CommandError(f"--plot {str(request.plot)!r}: give a name that ends in {', '.join(plot.KINDS)}")
        _check_writable("plot", request.plot)
    if request.table is not None:
        _check_writable("table", request.table)
    measured = ("out", request.out) if request.source is None else ("from", request.source)
    taken: dict[str, str] = {}
    for option, path in (measured, ("plot", request.plot), ("table", request.table)):
        other = option if path is None else taken.setdefault(os.path.realpath(path), option)
        if other != option:  # the measurements would be gone
            raise CommandError(f"--{option} {str(path)!r} is the file of --{other}: give another name")


def _check_writable(option: str, path: Path) -> None:
    folder = path.parent
    try:
        if not folder.is_dir():
            raise CommandError(f"there is no folder {str(folder)!r} for --{option} {path.name!r}: make it first")
        allowed = not path.is_dir() and os.access(path if path.exists() else folder, os.W_OK)
        # The result is written next to its place and moved there.
        allowed = allowed and (option != "out" or os.access(folder, os.W_OK))
    except OSError:  # a name that is too long
        allowed = False
    if not allowed:
        raise CommandError(f"--{option} {str(path)!r} cannot be written: give the name of a file")


def check_source(request: Request) -> None:
    """Raise `CommandError` if a run is described, too, when a result is only to be shown again."""
    usual = Request(request.out, source=request.source, plot=request.plot, table=request.table)
    for f in fields(Request):
        if getattr(request, f.name) != getattr(usual, f.name):
            option = OPTIONS.get(f.name, f.name)
            raise CommandError(
                f"--from shows what was measured before: it takes --plot, --table and --json, and not --{option}"
            )


def contenders(request: Request) -> dict[str, Method | None]:
    """Label -> method, the stock model first."""
    named = [name for name in request.methods if name != DENSE]
    if not (request.methods or request.described):
        if request.options:
            raise CommandError(f"--option {request.options[0]!r} belongs to a method: say --method, too")
        named = list(DEFAULT)
    elif request.keeps and not named:
        raise CommandError("--keep belongs to --method: write it into the JSON of --method-json")
    found: list[Method] = []
    for name, own in zip(named, options_by_method(named, request.options)):
        found += [method_from_words(name, keep, own, None) for keep in request.keeps or [None]]
    found += [method_from_words(None, None, [], text) for text in request.described]
    labelled: dict[str, Method | None] = {DENSE: None}
    for method in found:
        if label(method) in labelled:
            raise CommandError(f"{label(method)} would be measured twice: name it once")
        labelled[label(method)] = method
    if len(labelled) == 1:
        raise CommandError(
            "there is nothing to compare the stock model with: say --method, or leave --method dense out"
        )
    return labelled


def label(method: Method) -> str:
    """``fastv(keep=0.3, layer=4)``: the name, and what is not as it is by default."""
    terms = "+".join(map(_label, method.terms()))
    return f"({terms})(keep={method.keep:.4g})" if len(method.terms()) > 1 and method.keep is not None else terms


def _label(method: Method) -> str:
    options = []
    for f in fields(method):
        value = getattr(method, f.name)
        if f.default is MISSING or value != f.default:
            options.append(f"{f.name}={value:.4g}" if isinstance(value, float) else f"{f.name}={value}")
    return method.name() + (f"({', '.join(options)})" if options else "")
