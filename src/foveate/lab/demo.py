"""``foveate demo``: a reference model answers questions about new scenes, whole and compressed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import foveate_reference as reference
from foveate.cost import Report
from foveate.dial import Dial
from foveate.handle import compress, host_of
from foveate.lab import outputs, overlay, story
from foveate.lab.cautions import is_reference, is_small
from foveate.lab.checks import REFERENCES, check_scenes
from foveate.lab.index import group_sites
from foveate.lab.loading import load
from foveate.lab.speech import Speech, speech_of
from foveate.lab.story import Case, Content, Told
from foveate.lab.terminal import CommandError
from foveate.method import Host, Method
from foveate.methods import make

QUESTIONS = 6  # per image
BATCH = 2  # images
SHOWN = 3  # images with a table of their own
TIMED = 8  # images from which on times are said: of fewer, the fastest of a batch or two is chance
SCENES_PER_SEED = 1_000
DENSE = "dense"
VISUAL_TOKENS = 100  # of an image of a reference model


@dataclass(frozen=True)
class Row:
    """A question about an image, what each contender answered (``dense`` too), and how each method got there."""

    image: int
    question: reference.Question
    answers: dict[str, str] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """How a method did over all questions.

    Attributes:
        method: what was attached.
        right: right answers.
        sites: every site it visited.
        tokens: visual tokens per image, before the first site and after each.
        mean_tokens: visual tokens per image and decoder layer.
        flops_ratio, kv_ratio, time_ratio: over those of the stock model; times are of whole ``generate`` calls, in the
            fastest batch of each contender; None: there were too few.
    """

    method: Method
    right: int
    sites: tuple[str, ...]
    tokens: tuple[float, ...]
    mean_tokens: float
    flops_ratio: float
    kv_ratio: float
    time_ratio: float | None


@dataclass(frozen=True)
class Demo:
    """Everything that the demo found out; ``model``: what the command line calls it, ``family``: what it is."""

    images: tuple[Image.Image, ...]
    rows: tuple[Row, ...]
    dense_right: int
    scores: dict[str, Score]
    visual_tokens: int
    keep: float
    overlays: tuple[Path, ...]
    model: str = "reference"
    family: str = "qwen2_5_vl"


def contenders(keep: float, host: Host, cost: Callable[[Method], float]) -> dict[str, Method]:
    """Methods of every kind, each holding about ``keep`` of the visual tokens per decoder layer, on average.

    DyCoke is not here: it acts while an answer of several tokens is written, and these answers have one, or few. FastV's
    paper cuts at layer 2, but the text of a small reference model begins to look at the image at layer 3 only (its card
    shows it), so there FastV would rank by nothing: it gets layer 4 if the budget allows.

    Args:
        keep: the budget.
        host: facts about the model.
        cost: measures what a method really holds, as a share.
    """
    late = 4 if keep * host.layers > 4.5 else 2
    found = {}
    for method in (make(name, **({"layer": late} if name == "fastv" else {})) for name in outputs.SHOWN):
        setting = Dial(method, host, cost).set(keep)
        if not setting.reachable:
            raise CommandError(
                f"--keep {keep}: {method.name()} cannot hold that share of the visual tokens, the nearest is {setting.cost:.2g}"
            )
        found[method.name()] = setting.method
    return found


def play(
    images: int,
    seed: int,
    keep: float,
    folder: Path,
    tell: Callable[[str, float], None],
    name: str = "reference",
    overwrite: bool = False,
) -> Demo:
    """Draw, ask, measure, write pictures. ``tell`` gets what happens now and the share of the work that is done.

    Pictures that are there are replaced where ``overwrite`` says so, and else the new ones go beside them.
    """
    threads = torch.get_num_threads()
    if is_small(name):  # layers this small gain nothing from more, and lose much where the other cores are busy
        torch.set_num_threads(1)
    try:
        return _play(images, seed, keep, folder, tell, name, overwrite)
    finally:
        torch.set_num_threads(threads)


def _play(
    images: int, seed: int, keep: float, folder: Path, tell: Callable[[str, float], None], chosen: str, overwrite: bool
) -> Demo:
    tell("loading the reference model", 0.0)
    if not is_reference(chosen):
        raise CommandError(f"--model {chosen!r}: the demo asks a reference model, {', '.join(REFERENCES)}")
    model, processor = load(chosen)
    seeds = _scene_seeds(images, seed)
    scenes = [reference.make_scene(one) for one in seeds]
    speech = speech_of(processor)
    rows = [row for number, scene in enumerate(scenes) for row in _ask_about(number, scene, seeds[number], speech)]
    ask = partial(_answer, model, processor, speech.longest)
    tell("giving every method the same budget", 0.0)
    probe = _inputs(processor, [scenes[0].image], rows[:1])

    def cost(method: Method) -> float:
        with compress(model, method) as handle:
            ask(probe, _Watch())
            return handle.report().mean_tokens / VISUAL_TOKENS

    methods = contenders(keep, host_of(model), cost)
    watch = {name: _Watch() for name in (DENSE, *methods)}
    reports: dict[str, Report] = {}
    overlays: list[Path] = []
    for first in range(0, images, BATCH):
        batch = [row for row in rows if first <= row.image < first + BATCH]
        inputs = _inputs(processor, [scenes[row.image].image for row in batch], batch)
        if first == 0:
            ask(inputs, _Watch())  # the first call of all warms up
        # The contenders take turns on every batch, so that a machine that slows down slows all of them.
        _record(batch, DENSE, ask(inputs, watch[DENSE]))
        strips: dict[int, list[Image.Image]] = {}
        for turn, (name, method) in enumerate(methods.items()):
            tell(
                f"images {first + 1}-{min(first + BATCH, images)}: {name}",
                (first + BATCH * turn / len(methods)) / images,
            )
            with compress(model, method) as handle, handle.trace() as recorded:
                _record(batch, name, ask(inputs, watch[name]))
                reports[name], trace = handle.report(), recorded()
            for place, row in enumerate(batch):
                row.told[name] = Told.of(row.answers[name], story.tell(trace, reports[name], place), reports[name])
            for number in sorted({row.image for row in batch}):
                span = next(i for i, row in enumerate(batch) if row.image == number)
                picture = Image.fromarray(scenes[number].image)
                strip = overlay.strip(picture, batch[span].told[name].story, batch[span].question.text)
                overlays.append(_save(strip, outputs.demo_picture(folder, number, name), overwrite))
                strips.setdefault(number, []).append(strip)
        for number, rows_of_strips in strips.items():
            path = outputs.demo_picture(folder, number, "all")
            overlays.append(_save(overlay.stack(rows_of_strips), path, overwrite))
    tell("done", 1.0)
    dense = watch[DENSE].best
    ratios = {name: watch[name].best / dense if images >= TIMED else None for name in methods}
    scores = {name: _score(rows, name, methods[name], reports[name], ratios[name]) for name in methods}
    right = sum(row.answers[DENSE] == row.question.answer for row in rows)
    pictures = tuple(Image.fromarray(scene.image) for scene in scenes)
    family = model.config.model_type
    return Demo(pictures, tuple(rows), right, scores, VISUAL_TOKENS, keep, tuple(overlays), chosen, family)


def to_content(demo: Demo) -> Content:
    """What a page of it shows."""
    cases = [
        Case(
            f"image {row.image + 1}",
            demo.images[row.image],
            (),
            row.question.text,
            row.answers[DENSE],
            row.question.answer,
            row.told,
        )
        for row in demo.rows
    ]
    shown = {name: repr(score.method) for name, score in demo.scores.items()}
    return Content(demo.model, demo.family, shown, tuple(cases))


def to_dict(demo: Demo, page: Path) -> dict[str, Any]:
    """Plain data, and where the page is."""
    return {
        "questions": [
            {
                "image": row.image + 1,
                "task": row.question.task,
                "question": row.question.text,
                "truth": row.question.answer,
                "answers": row.answers,
            }
            for row in demo.rows
        ],
        "keep": demo.keep,
        "visual_tokens": demo.visual_tokens,
        "dense": {"right": demo.dense_right, "accuracy": demo.dense_right / len(demo.rows)},
        "methods": [
            {
                "name": name,
                "options": score.method.to_dict(),
                "right": score.right,
                "accuracy": score.right / len(demo.rows),
                "sites": list(score.sites),
                "tokens": list(score.tokens),
                "mean_tokens": score.mean_tokens,
                "flops_ratio": score.flops_ratio,
                "kv_ratio": score.kv_ratio,
                "time_ratio": score.time_ratio,
            }
            for name, score in demo.scores.items()
        ],
        "overlays": [str(path) for path in demo.overlays],
        "page": str(page),
    }


def show(demo: Demo, page: Path, console: Console) -> None:
    """Tables for a person, and where the page is."""
    numbers = sorted({row.image for row in demo.rows})
    for number in numbers[:SHOWN]:
        console.print(_answer_table(number, [row for row in demo.rows if row.image == number], list(demo.scores)))
    total = len(demo.rows)
    console.print(_summary(demo, total))
    console.print(
        f"{total} questions about {len(numbers)} images that were never seen in training; one standard error is about "
        f"{50 / math.sqrt(total):.0f} points. Every method holds about "
        f"{demo.keep:.0%} of the visual tokens per decoder layer. {_of_times(demo)}",
        style="dim",
    )
    console.print(f"\n{len(demo.overlays)} pictures of the surviving patches are in", end=" ")
    console.print(f"[bold]{escape(str(demo.overlays[0].parent))}[/bold]", soft_wrap=True)
    console.print(
        f"and layer by layer, next to the answers, in [bold]{escape(str(page))}[/bold]: open it in a browser",
        soft_wrap=True,
    )


def _timed(demo: Demo) -> bool:
    return all(score.time_ratio is not None for score in demo.scores.values())


def _of_times(demo: Demo) -> str:
    if _timed(demo):
        return "Times are those of a tiny model: see the benchmarks."
    return f"Times are left out: of fewer than {TIMED} scenes they say nothing."


def _scene_seeds(images: int, seed: int) -> list[int]:
    check_scenes(images, SCENES_PER_SEED)
    try:
        return [reference.split_seed("test", seed * SCENES_PER_SEED + number) for number in range(images)]
    except ValueError as error:
        raise CommandError(f"--seed {seed}: {error}") from None


def _ask_about(number: int, scene: reference.Picture, seed: int, speech: Speech) -> list[Row]:
    """One question per task, starting with another task for each image, so that every task has its turn."""
    first = {
        question.task: replace(
            question, text=speech.question(question.task, question.text), answer=speech.answer(question.answer)
        )
        for question in reversed(reference.ask(scene, seed))
    }
    start = number * QUESTIONS
    order = [reference.CORE[(start + i) % len(reference.CORE)] for i in range(len(reference.CORE))]
    return [Row(number, first[task]) for task in order if task in first][:QUESTIONS]


class _Watch:
    """Seconds per question in the fastest batch: what else the machine is busy with can only make one slower."""

    best = math.inf


def _inputs(processor: Any, images: Sequence[Any], rows: Sequence[Row]) -> Any:
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.question.text}]}] for row in rows
    ]
    text = processor.apply_chat_template(chats, add_generation_prompt=True)
    return processor(text=text, images=list(images), return_tensors="pt", padding=True)


def _answer(model: Any, processor: Any, longest: int, inputs: Any, watch: _Watch) -> list[str]:
    start = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    watch.best = min(watch.best, (time.perf_counter() - start) / len(output))
    new = output[:, inputs["input_ids"].shape[1] :]
    return [word.strip() for word in processor.batch_decode(new, skip_special_tokens=True)]


def _record(rows: Sequence[Row], name: str, words: Sequence[str]) -> None:
    for row, word in zip(rows, words, strict=True):
        row.answers[name] = word


def _score(rows: Sequence[Row], name: str, method: Method, report: Report, time_ratio: float | None) -> Score:
    """All images have one size, so the tokens of the last batch are those of every batch."""
    images = len(report.visits[0].before)
    counts = [report.visits[0].before, *(visit.after for visit in report.visits)]
    return Score(
        method,
        sum(row.answers[name] == row.question.answer for row in rows),
        tuple(visit.site for visit in report.visits),
        tuple(sum(count) / images for count in counts),
        report.mean_tokens,
        report.flops_ratio,
        report.kv_ratio,
        time_ratio,
    )


def _save(picture: Image.Image, path: Path, overwrite: bool) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = outputs.place_now(path, overwrite)
        picture.save(path)
    except OSError as error:
        raise CommandError(f"cannot write to {str(path.parent)!r}: {error}") from None
    return path


def _answer_table(number: int, rows: Sequence[Row], names: Sequence[str]) -> Table:
    table = Table(title=f"image {number + 1}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(escape(row.question.text))
    table.add_row("truth", *(escape(row.question.answer) for row in rows), end_section=True)
    for name in (DENSE, *names):
        table.add_row(name, *(_word(row.answers[name], row.question.answer) for row in rows))
    return table


def _word(answer: str, truth: str) -> str:
    """The cross is for terminals without colour."""
    return f"[green]{escape(answer)}[/green]" if answer == truth else f"[red]×{escape(answer or '(none)')}[/red]"


def _summary(demo: Demo, total: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("right", justify="right")
    table.add_column("visual tokens per site")
    for name in ("tokens\nper layer", "FLOPs", "KV", *(["time"] if _timed(demo) else [])):
        table.add_column(name, justify="right")
    full, whole = str(demo.visual_tokens), ["100%"] * (len(table.columns) - 4)
    table.add_row(DENSE, f"{demo.dense_right / total:.1%}", full, full, *whole, end_section=True)
    for name, score in demo.scores.items():
        table.add_row(
            name,
            f"{score.right / total:.1%}",
            f"{' → '.join(f'{count:.0f}' for count in score.tokens)}, {escape(group_sites(score.sites))}",
            f"{score.mean_tokens:.0f}",
            f"{score.flops_ratio:.0%}",
            f"{score.kv_ratio:.0%}",
            *([] if score.time_ratio is None else [f"{score.time_ratio:.0%}"]),
        )
    return table
