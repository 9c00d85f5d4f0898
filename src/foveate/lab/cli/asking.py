"""Commands that ask a model: ``demo``, ``run``, ``report`` and ``serve``."""

from __future__ import annotations

import shlex
from functools import partial
from os.path import isfile
from pathlib import Path
from typing import Annotated

import typer

from foveate.lab import checks, completion, needs, outputs, prompting, records, terminal, words
from foveate.lab.outputs import overlay_files
from foveate.lab.typed import (
    MACHINE,
    METHODS,
    OUTPUT,
    QUESTIONS,
    SUMS_TOO,
    Attn,
    BatchSize,
    Device,
    Dtype,
    Images,
    Json,
    Keep,
    ManyAsJson,
    Model,
    NewTokens,
    OneAsJson,
    OneMethod,
    OptionsOfMany,
    OptionsOfOne,
    Overwrite,
    adapter_option,
    data_option,
    given,
    image_option,
    keep_option,
    method_option,
    out_option,
    prompt_option,
    seed_option,
)
from foveate.schedule import check_ratio

#: In the folder of ``demo``.
PAGE = "report.html"


def demo(
    context: typer.Context,
    scenes: Annotated[
        int | None,
        typer.Option(help="How many scenes to draw.", show_default="16; 2 with --quick", rich_help_panel=QUESTIONS),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two scenes only.", rich_help_panel=QUESTIONS)] = False,
    seed: Annotated[int, seed_option("Another seed draws other scenes.")] = 0,
    keep: Annotated[
        float,
        keep_option("Share of the visual tokens that every method keeps, on average over the decoder layers."),
    ] = 0.5,
    model: Model = "reference",
    out: Annotated[
        Path,
        out_option("Folder for the page and pictures of surviving patches."),
    ] = Path("demo-output"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Ask a reference model about scenes that it has never seen, with methods and without."""
    count = scenes if scenes is not None else 2 if quick else 16
    checks.check_all(
        lambda: checks.check_left_out(given(context), ("--scenes",) if quick else (), "what --quick says, too"),
        lambda: outputs.check_folder("out", out),
        lambda: checks.check_scenes(count, 1000),
        lambda: _check_demo(out, count, overwrite),
        lambda: checks.check_seed(seed),
        lambda: check_ratio("keep", keep),
        lambda: checks.check_model(model),
    )
    from foveate.lab import demo as face
    from foveate.lab.report import page

    terminal.quiet_libraries()
    with terminal.Bar() as bar:
        found = face.play(count, seed, keep, out, bar.tell, model, overwrite)
    written = page.write(outputs.place_now(out / PAGE, overwrite), face.to_content(found))
    if json:
        terminal.emit(face.to_dict(found, written))
    else:
        face.show(found, written, terminal.out)


def run(
    context: typer.Context,
    image: Images = None,
    prompt: Annotated[str | None, prompt_option("What to ask about the images.")] = None,
    data: Annotated[
        Path | None,
        data_option('Many questions: a file of lines like {"image": "cat.jpg", "prompt": "What is it?"}.'),
    ] = None,
    new_tokens: NewTokens = 64,
    frames: Annotated[
        int, typer.Option(help="With --data: how many frames of a video are used at most.", rich_help_panel=QUESTIONS)
    ] = 32,
    compare: Annotated[bool, typer.Option(help="Ask the stock model, too.", rich_help_panel=QUESTIONS)] = True,
    method: OneMethod = None,
    keep: Keep = None,
    option: OptionsOfOne = None,
    method_json: OneAsJson = None,
    adapter: Annotated[
        str | None,
        adapter_option(
            "In place of --method: folder or hub id of what handle.save_pretrained or `foveate train` wrote."
        ),
    ] = None,
    model: Model = "reference",
    batch_size: BatchSize = 8,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attn = None,
    engine: Annotated[
        str,
        typer.Option(
            help="With --data: transformers, or vllm, which makes its own batches.",
            rich_help_panel=MACHINE,
            autocompletion=completion.among(*checks.ENGINES),
        ),
    ] = "transformers",
    engine_args: Annotated[
        str,
        typer.Option(help="With --engine vllm: options of `vllm serve`, in quotes.", rich_help_panel=MACHINE),
    ] = "",
    out: Annotated[
        Path | None,
        out_option("With --data: the file of the answers; a run that was stopped goes on there.", "answers.jsonl"),
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Folder for pictures of the surviving patches.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Ask any supported model about your images, with a method attached: one question, or a file of them (--data)."""
    answers = out or Path("answers.jsonl")
    counts = {"new-tokens": new_tokens, "frames": frames, "batch-size": batch_size}
    others, why = ("--frames", "--batch-size"), "for a file of questions, --data"
    if data is not None:
        others, why = ("--compare", "--no-compare"), "for one question, and a file is asked with the method alone"
    checks.check_all(
        lambda: checks.check_asked_or_data(image, prompt, data, out, overlay),
        lambda: checks.check_left_out(given(context), others, why),
        lambda: checks.check_engine(engine, engine_args, data),
        *(partial(checks.check_at_least_1, *each) for each in counts.items()),
        lambda: words.check_one_or_trained(method, keep, option or [], method_json, adapter),
        lambda: check_asked(model, dtype, device, image or [], [] if prompt is None else [prompt]),
        lambda: checks.check_attn(attn),
        *(
            partial(_check_overlay, folder, image or [], method, overwrite)
            for folder in (overlay,)
            if folder is not None
        ),
        *(partial(_check_files, file, answers, overwrite) for file in (data,) if file is not None and isfile(file)),
    )
    asked = checks.check_asked_or_data(image, prompt, data, out, overlay)
    from foveate.lab.options import method_from_words

    terminal.quiet_libraries(bars=True)
    chosen = adapter or method_from_words(method, keep, option or [], method_json)
    if asked is None:
        from foveate.lab import batch

        files = Path(str(data)), answers
        many = batch.Request(
            *files, model, chosen, batch_size, dtype, device, attn, new_tokens, frames, overwrite, engine, engine_args
        )
        with terminal.Bar() as bar:
            done = batch.run(many, bar.tell, terminal.warn)
        terminal.emit(batch.to_dict(done)) if json else batch.show(done, terminal.out)
        raise typer.Exit(1 if done.failed else 0)
    from foveate.lab import run as face

    request = face.Request(model, *asked, chosen, dtype, device, attn, new_tokens, compare, overlay, overwrite)
    result = face.run(request, terminal.note, terminal.warn)
    if json:
        terminal.emit(face.to_dict(result))
    else:
        face.show(result, terminal.out)


def report(
    context: typer.Context,
    image: Annotated[
        list[Path] | None,
        image_option("An image file; repeatable.", "drawn scenes with their questions"),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        prompt_option("What to ask: one for each image, one for all, or several about one."),
    ] = None,
    scenes: Annotated[
        int, typer.Option(help="How many scenes to draw, without --image.", rich_help_panel=QUESTIONS)
    ] = 3,
    seed: Annotated[int, seed_option("Another seed draws other scenes.")] = 0,
    new_tokens: NewTokens = 64,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="A results.json of `foveate eval`, for its curves; repeatable.", rich_help_panel=QUESTIONS),
    ] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(help="A JSON of `foveate bench`, for its plots; repeatable.", rich_help_panel=QUESTIONS),
    ] = None,
    method: Annotated[list[str] | None, method_option(SUMS_TOO, default="luvc, ipcv, adsc")] = None,
    keep: Keep = None,
    option: OptionsOfMany = None,
    method_json: ManyAsJson = None,
    model: Model = "reference",
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attn = None,
    out: Annotated[Path, out_option("Where the page is written.")] = Path("report.html"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a page that shows what methods do with the tokens of your images, layer by layer, and what the model answers."""
    from foveate.lab.report import bench as measured
    from foveate.lab.report import plots

    checks.check_all(
        lambda: words.check_many(method or [], option or [], method_json or [], keep=keep),
        lambda: checks.check_at_least_1("new-tokens", new_tokens),
        lambda: check_asked(model, dtype, device, image or [], prompt or []),
        lambda: checks.check_attn(attn),
        lambda: checks.check_images_and_prompts(image or [], prompt or []),
        lambda: checks.check_left_out(
            given(context), ("--scenes", "--seed") if image else (), "for drawn scenes, and here are images"
        ),
        lambda: checks.check_scenes(scenes, 100),
        lambda: checks.check_seed(seed),
        lambda: outputs.check_no_media("out", out, "report.html"),
        lambda: outputs.check_new("out", out, overwrite),
    )
    curves = [plots.of_results(path) for path in results or ()]
    measurements = [group for path in bench or () for group in measured.of_bench(path)]
    from foveate.lab.report import collect, page

    terminal.quiet_libraries(bars=True)
    chosen = collect.methods_of(method or (), option or (), method_json or (), keep)
    asked = tuple(image or ()), tuple(prompt or ())
    request = collect.Request(model, *asked, chosen, scenes, seed, dtype, device, attn, new_tokens)
    with terminal.Bar() as bar:
        content = collect.collect(request, bar.tell)
    written = page.write(outputs.place_now(out, overwrite), content, curves, measurements)
    if json:
        terminal.emit(page.summary(content, written))
    else:
        page.show(content, written, terminal.out)


def serve(
    context: typer.Context,
    method: OneMethod = None,
    keep: Keep = None,
    option: OptionsOfOne = None,
    method_json: OneAsJson = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder, a hub id or 'reference'; or give it as the first word, as `vllm serve` has it.",
            rich_help_panel=MACHINE,
            autocompletion=completion.a_model,
        ),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            help="The largest keep that a prompt may ask for; without it, no prompt may ask.", rich_help_panel=METHODS
        ),
    ] = None,
    adaptive: Annotated[
        float | None,
        typer.Option(
            help="Let an image with more detail keep more: from this share up to --limit.", rich_help_panel=METHODS
        ),
    ] = None,
    detail: Annotated[
        float | None,
        typer.Option(
            help="A part of an image has detail if its brightness has at least this standard deviation, 0 to 0.5.",
            show_default="0.02",
            rich_help_panel=METHODS,
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="A method that a prompt may ask for: fast=luvc,keep=0.3, or exact=none; repeatable.",
            rich_help_panel=METHODS,
            autocompletion=completion.a_profile,
        ),
    ] = None,
    show: Annotated[
        bool,
        typer.Option("--show", help="Print the `vllm serve` command, and do not run it.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Serve a model with vLLM and a method. Any other option is passed on to `vllm serve`."""
    rest = list(context.args)
    if model is None:
        if not rest or rest[0].startswith("-"):
            raise terminal.CommandError("say which model, first of all or with --model, e.g. `foveate serve reference`")
        model = rest.pop(0)
    at = model
    checks.check_all(lambda: checks.check_model(at), lambda: words.check_one(method, keep, option or [], method_json))
    if adaptive is not None and limit is None:
        raise terminal.CommandError("--adaptive says the least that an image keeps: add --limit, the most")
    if detail is not None and adaptive is None:
        raise terminal.CommandError(
            "--detail is of budgets by the detail of each image: add --adaptive, the least of them"
        )
    if not show:
        needs.check("vllm", "foveate serve")
    from foveate.lab import serve as face
    from foveate.lab.options import method_from_words

    chosen = method_from_words(method, keep, option or [], method_json)
    terminal.check_once(profile=profile or [])
    by_detail = {name: x for name, x in (("least", adaptive), ("threshold", detail)) if x is not None}
    argv = face.words(model, chosen, rest, limit, dict(map(face.profile, profile or [])), by_detail)
    if show:
        print(shlex.join(["vllm", *argv]))
    else:
        face.serve(argv)


def check_asked(model: str, dtype: str, device: str, images: list[Path], prompts: list[str]) -> None:
    """What can be said of a question without a model: nobody should wait for torch to hear it."""
    checks.check_all(
        *(partial(prompting.check, prompt) for prompt in prompts),
        lambda: checks.check_model(model),
        lambda: checks.check_dtype(dtype),
        lambda: checks.check_device(device),
        *(partial(prompting.open_image, image) for image in images),
    )


def _check_demo(folder: Path, scenes: int, overwrite: bool) -> None:
    """What can be said of the page and the pictures: the first that cannot be written."""
    for path in (folder / PAGE, *outputs.demo_pictures(folder, min(scenes, 1000))):
        outputs.check_new("out", path, overwrite)


def _check_overlay(folder: Path, images: list[Path], method: str | None, overwrite: bool) -> None:
    """What can be said of the pictures of a method by name."""
    outputs.check_folder("overlay", folder)
    parts = [part.strip().lower() for part in method.split("+")] if method is not None else []
    for path in overlay_files(folder, images, parts) if parts else ():
        outputs.check_new("overlay", path, overwrite)


def _check_files(data: Path, answers: Path, overwrite: bool) -> None:
    """What can be said of a file of questions, and of the one of their answers."""
    outputs.check_no_media("out", answers, "answers.jsonl")
    checks.check_answers(answers, data)
    outputs.check_folder("out", answers.parent)
    if not answers.with_name(answers.name + ".settings.json").is_file():  # else they may be this run's
        outputs.check_new("out", answers, overwrite)
    records.check(data)
