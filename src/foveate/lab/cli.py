"""The command ``foveate``. No logic here: each command hands over to a module, imported when it is needed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from foveate.errors import FoveateError
from foveate.lab import checks, needs, prompting, terminal, words
from foveate.lab.evaluation.request import Fidelity, Reference, Tasks, Tune
from foveate.lab.typed import (
    Attn,
    Device,
    Dtype,
    Json,
    Keep,
    ManyAsJson,
    Model,
    OneAsJson,
    OneMethod,
    OptionsOfMany,
    OptionsOfOne,
    with_options_of,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Vision-language models with fewer vision tokens, without retraining.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train a model from nothing, or to work with fewer tokens.")
app.add_typer(train_app, name="train")
eval_app = typer.Typer(no_args_is_help=True, help="Measure what methods lose at given budgets.")
app.add_typer(eval_app, name="eval")

R = TypeVar("R", Reference, Tasks, Fidelity, Tune)


def main() -> None:
    """Entry point: mistakes of the user are one sentence, not a traceback."""
    try:
        app()
    except FoveateError as error:
        terminal.fail(error)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in needs.INSTALLED_BY:
            raise
        terminal.fail(needs.missing(str(error.name).partition(".")[0], "this"))
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C
            terminal.note("stopped; eval, tune, bench and run --data keep what they have, and the same command goes on")
        raise


def _version(wanted: bool) -> None:
    if wanted:
        from foveate import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page and pictures of surviving patches.")] = Path(
        "demo-output"
    ),
    images: Annotated[
        int | None, typer.Option(help="How many scenes to draw.", show_default="16; 2 with --quick")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.")] = 0,
    keep: Annotated[float, typer.Option(help="Visual tokens per decoder layer, on average, for every method.")] = 0.5,
    quick: Annotated[bool, typer.Option("--quick", help="Two scenes only.")] = False,
    json: Json = False,
) -> None:
    """Ask the shipped reference model about scenes it has never seen, whole and compressed."""
    from foveate.lab import demo as face
    from foveate.lab.report import page

    terminal.quiet_libraries()
    with terminal.Bar() as bar:
        found = face.play(images if images is not None else 2 if quick else 16, seed, keep, out, bar.tell)
    written = page.write(out / "report.html", face.to_content(found))
    if json:
        terminal.emit(face.to_dict(found, written))
    else:
        face.show(found, written, terminal.out)


@app.command()
def run(
    image: Annotated[list[Path] | None, typer.Option(help="An image file; repeat it for several.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about them.")] = None,
    model: Model = "reference",
    method: OneMethod = None,
    keep: Keep = None,
    option: OptionsOfOne = None,
    method_json: OneAsJson = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="In place of a method: folder or hub id of what handle.save_pretrained or `foveate train` wrote."
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attn = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 64,
    overlay: Annotated[Path | None, typer.Option(help="Folder for pictures of the surviving patches.")] = None,
    compare: Annotated[bool, typer.Option(help="Ask the stock model, too.")] = True,
    data: Annotated[
        Path | None,
        typer.Option(help='Many questions: a file of lines like {"image": "cat.jpg", "prompt": "What is it?"}.'),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --data: the answers; a run stopped goes on.", show_default="answers.jsonl"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="With --data: questions at once.")] = 8,
    frames: Annotated[int, typer.Option(min=1, help="With --data: frames of a video at most.")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --data: begin anew.")] = False,
    json: Json = False,
) -> None:
    """Ask any supported model about your images, with a method attached: one question, or a file of them (--data)."""
    asked = checks.check_asked_or_data(image, prompt, data, out, overlay)
    words.check_one_or_trained(method, keep, option or [], method_json, adapter)
    _check_asked(model, dtype, image or [], [] if prompt is None else [prompt])
    from foveate.lab.options import method_from_words

    terminal.quiet_libraries(bars=True)
    chosen = adapter or method_from_words(method, keep, option or [], method_json)
    if asked is None:
        from foveate.lab import batch

        files = Path(str(data)), out or Path("answers.jsonl")
        many = batch.Request(*files, model, chosen, batch_size, dtype, device, attn, max_new_tokens, frames, overwrite)
        with terminal.Bar() as bar:
            done = batch.run(many, bar.tell, terminal.warn)
        terminal.emit(batch.to_dict(done)) if json else batch.show(done, terminal.out)
        raise typer.Exit(1 if done.failed else 0)
    from foveate.lab import run as face

    request = face.Request(model, *asked, chosen, dtype, device, attn, max_new_tokens, compare, overlay)
    result = face.run(request, terminal.note, terminal.warn)
    if json:
        terminal.emit(face.to_dict(result))
    else:
        face.show(result, terminal.out)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    image: Annotated[
        list[Path] | None,
        typer.Option(help="An image file, repeatable.", show_default="drawn scenes with their questions"),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to ask: one for each image, one for all, or several about one.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method, or a sum as 'ipcv+adsc'; repeatable.", show_default="luvc, ipcv, adsc"),
    ] = None,
    option: OptionsOfMany = None,
    method_json: ManyAsJson = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="A results.json of `foveate eval`, for its curves; repeatable.")
    ] = None,
    bench: Annotated[
        list[Path] | None, typer.Option(help="A JSON of `foveate bench`, for its plots; repeatable.")
    ] = None,
    model: Model = "reference",
    scenes: Annotated[int, typer.Option(help="How many scenes to draw, without --image.")] = 3,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attn = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
    json: Json = False,
) -> None:
    """Write a page that shows what methods do with the tokens of your images, layer by layer, and what is answered."""
    from foveate.lab.report import bench as measured
    from foveate.lab.report import plots

    words.check_many(method or [], option or [], method_json or [])
    _check_asked(model, dtype, image or [], prompt or [])
    curves = [plots.of_results(path) for path in results or ()]
    measurements = [group for path in bench or () for group in measured.of_bench(path)]
    from foveate.lab.report import collect, page

    terminal.quiet_libraries(bars=True)
    page.check(out, overwrite)
    chosen = collect.methods_of(method or (), option or (), method_json or ())
    asked = tuple(image or ()), tuple(prompt or ())
    request = collect.Request(model, *asked, chosen, scenes, seed, dtype, device, attn, max_new_tokens)
    with terminal.Bar() as bar:
        content = collect.collect(request, bar.tell)
    written = page.write(out, content, curves, measurements)
    if json:
        terminal.emit(page.summary(content, written))
    else:
        page.show(content, written, terminal.out)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder, a hub id or 'reference'.")],
    method: OneMethod = None,
    keep: Keep = None,
    option: OptionsOfOne = None,
    method_json: OneAsJson = None,
    limit: Annotated[
        float | None, typer.Option(help="The largest keep that a prompt may ask for; none may without.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the `vllm serve` command, and do not run it.")] = False,
) -> None:
    """Serve a model with vLLM and a method. Any other option is handed to `vllm serve`."""
    words.check_one(method, keep, option or [], method_json)
    from foveate.lab import serve as face
    from foveate.lab.options import method_from_words

    chosen = method_from_words(method, keep, option or [], method_json)
    argv = face.words(model, chosen, context.args, limit)
    if show:
        print(shlex.join(["vllm", *argv]))
    else:
        face.serve(argv)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Tell more about this one.")] = None,
    site: Annotated[str, typer.Option(help="Those that act at such a place: tower, decoder ...")] = "",
    search: Annotated[str, typer.Option(help="Those with these words in name, title or description.")] = "",
    json: Json = False,
) -> None:
    """List the methods: paper, sites, trained or not, budget, options."""
    from foveate.lab import catalog as face

    if name is None:
        found = face.describe_methods(site, search)
        terminal.emit(found) if json else face.show_methods(found, terminal.out)
    elif site or search:
        raise terminal.CommandError(f"give the name {name!r}, or --site and --search to find some, not both")
    else:
        one = face.describe_method(name)
        terminal.emit(one) if json else face.show_method(one, terminal.out)


@app.command()
def families(json: Json = False) -> None:
    """List the families of models that methods can be attached to."""
    from foveate.lab import catalog as face

    found = face.describe_families()
    if json:
        terminal.emit(found)
    else:
        face.show_families(found, terminal.out)


@eval_app.command("reference")
@with_options_of(Reference)
def eval_reference(request: Reference, json: bool) -> None:
    """Accuracy on questions that the reference models can answer, beside an oracle and controls."""
    request.check()
    from foveate.lab.evaluation.reference import evaluate

    _measured(evaluate, request, json)


@eval_app.command("tasks")
@with_options_of(Tasks)
def eval_tasks(request: Tasks, json: bool) -> None:
    """Accuracy on public benchmarks, asked and scored by lmms-eval."""
    request.check()
    from foveate.lab.evaluation.lmms.run import evaluate

    _measured(evaluate, request, json)


@eval_app.command("fidelity")
@with_options_of(Fidelity)
def eval_fidelity(request: Fidelity, json: bool) -> None:
    """How far methods move next-token distributions, without labels: on your images, or the reference benchmark's."""
    request.check()
    from foveate.lab.evaluation.fidelity.measuring import measure

    _measured(measure, request, json)


@app.command()
def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Random weights in this shape, e.g. qwen2.5-vl-7b; repeatable.", show_default="small-qwen2.5-vl"
        ),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A real model: folder or hub id; repeatable.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method or a sum; repeatable.", show_default="three controls, luvc, ipcv, adsc"),
    ] = None,
    keep: Annotated[list[float] | None, typer.Option(help="Each method at this share of tokens; repeatable.")] = None,
    option: OptionsOfMany = None,
    method_json: ManyAsJson = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(help="Visual tokens of a row, about; repeatable.", show_default="256, 1024, 4096"),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows of a call; repeatable.", show_default="1")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds in which the stock model and every method run once.")] = 5,
    new_tokens: Annotated[int, typer.Option(help="Tokens that a call generates.")] = 16,
    steps: Annotated[int, typer.Option(help="Pairs of single steps, stock and method in turn; 0: none.")] = 16,
    dtype: Dtype = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    attn: Attn = None,
    seed: Annotated[int, typer.Option(help="Of weights, pixels and order.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON of every measurement; a run stopped there goes on.")] = Path(
        "bench.json"
    ),
    source: Annotated[Path | None, typer.Option("--from", help="Measure nothing: show this JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the sweep into this file (.png, .pdf or .svg).")] = None,
    table: Annotated[Path | None, typer.Option(help="Write the tables into this file, as Markdown.")] = None,
    json: Json = False,
) -> None:
    """Measure time and memory of the stock model and of methods, in turn, over visual tokens, batch and keep."""
    words.check_many(method or [], option or [], method_json or [], (checks.DENSE,))
    for name in model or ():
        checks.check_model(name)
    checks.check_dtype(dtype)
    from foveate.lab.bench import Request, show, sweep

    terminal.quiet_libraries()
    request = Request(
        out,
        shapes=tuple(shape or ()),
        models=tuple(model or ()),
        methods=tuple(method or ()),
        keeps=tuple(keep or ()),
        options=tuple(option or ()),
        described=tuple(method_json or ()),
        tokens=tuple(tokens or ()),
        batches=tuple(batch or ()),
        repeats=repeats,
        new_tokens=new_tokens,
        steps=steps,
        dtype=dtype,
        device=device,
        attn=attn,
        seed=seed,
        source=source,
        plot=plot,
        table=table,
    )
    with terminal.Bar() as bar:
        found = sweep.run(request, bar.tell)
    written = show.write(found, request)
    if json:
        terminal.emit(found.to_dict())
    else:
        show.show(found, written, terminal.out)


@app.command()
@with_options_of(Tune)
def tune(request: Tune, json: bool) -> None:
    """Search a method's layer, options or schedule, by fidelity: no labels are needed."""
    request.check()
    from foveate.lab.evaluation.tune import tuning

    _measured(tuning.tune, request, json)


@train_app.command("reference")
def train_reference(
    out: Annotated[Path, typer.Option(help="Folder for checkpoint and model.")],
    recipe: Annotated[
        str, typer.Option(help="qwen2_5_vl, llava, or large (47 M parameters, for a GPU).")
    ] = "qwen2_5_vl",
    seed: Annotated[int, typer.Option(help="Decides the first weights and the scenes.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    option: Annotated[list[str] | None, typer.Option(help="name=value of TrainConfig, repeatable.")] = None,
    json: Json = False,
) -> None:
    """Train a reference model that ships with the package again."""
    from foveate.lab.train import reference as face

    terminal.quiet_libraries()
    folder = face.train(out, recipe, seed, resume, device, option or [], terminal.note)
    if json:
        terminal.emit({"model": str(folder)})
    else:
        terminal.out.print(f"the model is in {folder}", markup=False, soft_wrap=True)


@train_app.command("adsc")
def train_adsc(
    out: Annotated[Path, typer.Option(help="Folder for the adapter; give it to foveate.compress.")],
    model: Model = "reference",
    data: Annotated[
        str,
        typer.Option(help="'reference', a folder, file or hub id of chats with columns `messages` and `images`."),
    ] = "reference",
    split: Annotated[str, typer.Option(help="Of the data.")] = "train",
    samples: Annotated[int | None, typer.Option(help="Chats to use.", show_default="all; 8000 of 'reference'")] = None,
    keep: Annotated[float, typer.Option(help="Mean share of visual tokens per decoder layer to train for.")] = 1 / 3,
    method_option: Annotated[list[str] | None, typer.Option(help="name=value of ADSC, repeatable.")] = None,
    curriculum: Annotated[
        str, typer.Option(help="hard-to-easy, easy-to-hard, constant, or shares kept: 0.1,0.2,0.3.")
    ] = "hard-to-easy",
    option: Annotated[
        list[str] | None,
        typer.Option(help="name=value of the recipe, repeatable: rank, alpha, lr, epochs, steps, batch ..."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of data order, first matrices and dropout.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Teach a model, with LoRA and a curriculum, to put what it sees into fewer tokens."""
    words.check_one("adsc", keep, method_option or [], None)
    _check_asked(model, dtype, [], [])
    from foveate.lab.options import method_from_words
    from foveate.lab.train import adsc as face
    from foveate.lab.words import assigned
    from foveate.methods.adsc import ADSC
    from foveate.serialise import build
    from foveate.training.adsc import Recipe

    terminal.quiet_libraries()
    recipe = build(Recipe, assigned(Recipe, option or []))
    method = method_from_words(ADSC.name(), keep, method_option or [], None)
    request = face.Request(out, model, data, split, samples, method, curriculum, recipe, seed, dtype, device)
    found = face.train(request, resume, terminal.note)
    if json:
        terminal.emit(face.to_dict(found))
    else:
        face.show(found, terminal.out)


def _measured(evaluate: Callable[[R, Callable[[str, float], None]], Any], request: R, json: bool) -> None:
    """Measure, write the report into the folder of the run, and show it."""
    from foveate.lab.evaluation import report

    terminal.quiet_libraries()
    with terminal.Bar() as bar:
        found = evaluate(request, bar.tell)
    if found is None:  # another process of accelerate has it
        return
    written = report.write(found)
    if json:
        terminal.emit(found.to_dict())
    else:
        report.show(found.report(), written, terminal.out)


def _check_asked(model: str | None, dtype: str | None, images: list[Path], prompts: list[str]) -> None:
    """What can be said of a question without a model: nobody should wait for torch to hear it."""
    for prompt in prompts:
        prompting.check(prompt)
    if model is not None:
        checks.check_model(model)
    checks.check_dtype(dtype or "auto")
    for image in images:
        prompting.open_image(image)
