"""The result as tables: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from foveate.lab import outputs
from foveate.lab.bench.plot import draw
from foveate.lab.bench.request import Request, name_of
from foveate.lab.bench.result import DENSE, Case, Result
from foveate.lab.bench.summary import Crossover, Spread, compare, crossovers, seconds, spread, stock_flops
from foveate.lab.terminal import CommandError, aligned, markdown_table

COLUMNS = ("", "tokens", "FLOPs", "counted", "KV", "memory", "tower", "prefill", "first token", "decode", "of ideal")
TIMED = ("tower", "prefill", "first")


def show(result: Result, written: Sequence[Path], console: Console) -> None:
    """For a person at a terminal."""
    for case in result.cases:
        console.print(f"[bold]{escape(_heading(case))}[/bold]", soft_wrap=True)
        for line in aligned([COLUMNS, *_rows(case)]):
            console.print(escape(line), soft_wrap=True)
        for line in _steps(case):
            console.print(escape(line), soft_wrap=True)
        console.print()
    for line in _crossing(result):
        console.print(escape(line), soft_wrap=True)
    for line in remarks(result):
        console.print(escape(line), style="dim", soft_wrap=True)
    if written:
        console.print("\nwritten: " + ", ".join(escape(str(path)) for path in written), soft_wrap=True)


def markdown(result: Result) -> str:
    """The same for a page."""
    lines: list[str] = []
    for case in result.cases:
        lines += [f"**{_heading(case)}**", "", *markdown_table(COLUMNS, _rows(case)), ""]
        lines += [line for steps in _steps(case) for line in (steps, "")]
    crossing = _crossing(result)
    return "\n".join([*lines, *(f"* {line}" for line in [*crossing, *remarks(result)])]) + "\n"


def write(result: Result, request: Request) -> list[Path]:
    """Tables and picture, where they are asked for; all files of the run."""
    shown = []
    for path, make in ((request.table, _write_tables), (request.plot, draw)):
        if path is not None:
            place = outputs.place_now(path, request.overwrite or name_of(path, request.out) in result.shown)
            make(result, place)
            shown.append(place)
    if request.source is not None:
        return shown
    new = [name for path in shown if (name := name_of(path, request.out)) not in result.shown]
    if new:
        result.shown += new
        result.write(request.out)
    return [request.out, *shown]


def _write_tables(result: Result, path: Path) -> None:
    try:
        path.write_text(markdown(result), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write the tables to {str(path)!r}: {error}") from None


def remarks(result: Result) -> list[str]:
    """What a reader must know to read the tables."""
    settings = result.settings
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    cuda = settings["device"] != "cpu"
    memory = (
        "what torch's allocator held" if cuda else "bytes of tensors that were alive at once, without what kernels take"
    )
    return [
        f"The first row is the stock model; below it, shares of what it spends, and how many times as fast. In every round "
        f"each ran once, in turn; medians, in brackets quartiles of the rounds. {settings['new_tokens']} new tokens.",
        "Tokens: visual tokens per row and decoder layer. FLOPs: of the whole call by the report's formula, and as torch "
        f"counted them. KV: bytes of the cache after the call. Memory: the most above model and inputs ({memory}).",
        "Tower: with the projector. Prefill: the language model's first forward. First token: from the call to the token, all "
        "included. Decode: tokens after the first. Of ideal: speed-up to the first token over what its FLOPs would give.",
        f"{settings['cpu']}, {_count(settings['threads'], 'thread')}, device {settings['device']}; {versions}; "
        f"commit {settings['commit'] or 'unknown'}.",
    ]


def _heading(case: Case) -> str:
    images, rounds = _count(case.images, "image"), _count(case.rounds, "round")
    return (
        f"{case.model}: {case.tokens:,} visual tokens in {images}, {case.text} of text, batch {case.batch}, {case.dtype}, "
        f"{case.attn}, {rounds}"
    )


def _rows(case: Case) -> list[tuple[str, ...]]:
    return [_stock(case), *(_row(case, label) for label in case.lines if label != DENSE)]


def _stock(case: Case) -> tuple[str, ...]:
    line, flops = case.lines[DENSE], stock_flops(case)
    if line.probe is None:
        return (DENSE, line.error or "not measured yet", *[""] * (len(COLUMNS) - 2))
    times = [_seconds(seconds(line, stage)) for stage in TIMED]
    decode = seconds(line, "decode")
    costs = ("-" if flops is None else _big(sum(flops.values())), _big(line.probe["counted"]))
    sizes = (_bytes(line.probe["kv"]), _bytes(line.probe["peak"]))
    return (DENSE, f"{case.tokens}", *costs, *sizes, *times, _rate(decode, case.batch), "-")


def _row(case: Case, label: str) -> tuple[str, ...]:
    line, found = case.lines[label], compare(case, label)
    if found is None:
        alone = seconds(line, "first")  # where the stock model does not fit
        why = line.error or ("not measured yet" if alone is None else f"first token {_seconds(alone)}")
        return (label, why, *[""] * (len(COLUMNS) - 2))
    shares = (found.flops, found.counted, found.kv, found.peak)
    times = [_ratio(found.speed.get(stage)) for stage in (*TIMED, "decode")]
    return (label, f"{found.tokens:.0f}", *(f"{x:.1%}" for x in shares), *times, f"{found.of_ideal:.2f}")


def _steps(case: Case) -> list[str]:
    """A line with what a step of decoding costs under every method, if that was measured."""
    found = {label: spread(line.steps) for label, line in case.lines.items() if line.steps}
    if not found:
        return []
    pairs = max(len(line.steps) for line in case.lines.values())
    said = "; ".join(f"{label} {each.median:.2f} ({each.low:.2f}-{each.high:.2f})" for label, each in found.items())
    return [f"A step of decoding over a stock one right before or after it, {pairs} pairs: {said}"]


def _crossing(result: Result) -> list[str]:
    """A line for every model and batch that was swept."""
    groups: dict[tuple[str, int], list[Crossover]] = {}
    for found in crossovers(result):
        groups.setdefault((found.model, found.batch), []).append(found)
    return [
        f"{model}, batch {batch}: faster to the first token than the stock model from so many visual tokens on: "
        + "; ".join(f"{each.label} {crossover(each)}" for each in several)
        for (model, batch), several in groups.items()
    ]


def crossover(found: Crossover) -> str:
    """``about 700``, ``256 or fewer``, ``none up to 4,096``."""
    if found.tokens is None:
        return f"none up to {found.largest:,}"
    return f"{found.smallest:,} or fewer" if found.tokens <= found.smallest else f"about {found.tokens:,.0f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _ratio(found: Spread | None) -> str:
    return "-" if found is None else f"{found.median:.2f}x ({found.low:.2f}-{found.high:.2f})"


def _seconds(found: Spread | None) -> str:
    if found is None:
        return "-"
    unit, factor = ("s", 1) if found.median >= 1 else ("ms", 1000)
    numbers = [f"{factor * x:.3g}" for x in (found.median, found.low, found.high)]
    return f"{numbers[0]} {unit} ({numbers[1]}-{numbers[2]})"


def _rate(found: Spread | None, batch: int) -> str:
    if found is None:
        return "-"
    return f"{batch / found.median:.3g}/s ({batch / found.high:.3g}-{batch / found.low:.3g})"


def _big(count: float, units: Sequence[str] = ("", "k", "M", "G", "T", "P")) -> str:
    place = 0
    while count >= 1000 and place < len(units) - 1:
        count, place = count / 1000, place + 1
    return f"{count:.3g} {units[place]}".strip()


def _bytes(count: float) -> str:
    return f"{_big(count)}B"
