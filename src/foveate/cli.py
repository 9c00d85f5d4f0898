"""The command ``foveate``. No logic here: each command hands over to a module, imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate import terminal
from foveate.errors import FoveateError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Vision-language models with fewer vision tokens, without retraining.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train a model from nothing.")
app.add_typer(train_app, name="train")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]


def main() -> None:
    """Entry point: mistakes of the user are one sentence, not a traceback."""
    try:
        app()
    except FoveateError as error:
        terminal.fail(error)
        raise SystemExit(2) from None


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
    out: Annotated[Path, typer.Option(help="Folder for the pictures of surviving patches.")] = Path("demo-output"),
    images: Annotated[int | None, typer.Option(help="How many scenes to draw.  [default: 16; 2 with --quick]")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.")] = 0,
    keep: Annotated[float, typer.Option(help="Visual tokens per decoder layer, on average, for every method.")] = 0.5,
    quick: Annotated[bool, typer.Option("--quick", help="Two scenes only.")] = False,
    json: Json = False,
) -> None:
    """Ask the shipped reference model about scenes it has never seen, whole and compressed."""
    from foveate import demo as face

    terminal.quiet_libraries()
    with terminal.Bar() as bar:
        found = face.play(images if images is not None else 2 if quick else 16, seed, keep, out, bar.tell)
    if json:
        terminal.emit(face.to_json(found))
    else:
        face.show(found, terminal.out)


@app.command()
def run(
    image: Annotated[list[Path], typer.Option(help="An image file; repeat it for several.")],
    prompt: Annotated[str, typer.Option(help="What to ask about them.")],
    model: Annotated[str, typer.Option(help="A folder, an id on the Hugging Face hub, or 'reference'.")] = "reference",
    method: Annotated[str | None, typer.Option(help="Its name; 'tome+fastv' for both at once.")] = None,
    keep: Annotated[float | None, typer.Option(help="Share of tokens kept; short for --option keep=...")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="name=value, repeatable; method.name=value in a sum.")
    ] = None,
    method_json: Annotated[str | None, typer.Option(help="The method as JSON, or a file of it.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")] = "auto",
    attn: Annotated[str | None, typer.Option(help="Attention implementation: sdpa, eager, ...")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer at most.")] = 64,
    overlay: Annotated[Path | None, typer.Option(help="Folder for pictures of the surviving patches.")] = None,
    compare: Annotated[bool, typer.Option(help="Ask the stock model, too.")] = True,
    json: Json = False,
) -> None:
    """Ask any supported model about your images, with a method attached."""
    from foveate import run as face
    from foveate.options import method_from_words

    terminal.quiet_libraries(bars=True)
    chosen = method_from_words(method, keep, option or [], method_json)
    request = face.Request(model, tuple(image), prompt, chosen, dtype, device, attn, max_new_tokens, compare, overlay)
    result = face.run(request, terminal.note)
    if json:
        terminal.emit(face.to_json(result))
    else:
        face.show(result, terminal.out)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Tell more about this one.")] = None, json: Json = False
) -> None:
    """List the methods: paper, sites, trained or not, budget, options."""
    from foveate import catalog as face

    found = face.describe_methods(name)
    if json:
        terminal.emit(found)
    elif name is None:
        face.show_methods(found, terminal.out)
    else:
        face.show_method(found, terminal.out)


@app.command()
def families(json: Json = False) -> None:
    """List the families of models that methods can be attached to."""
    from foveate import catalog as face

    found = face.describe_families()
    if json:
        terminal.emit(found)
    else:
        face.show_families(found, terminal.out)


@train_app.command("reference")
def train_reference(
    out: Annotated[Path, typer.Option(help="Folder for checkpoint and model.")],
    seed: Annotated[int, typer.Option(help="Decides the first weights and the scenes.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    option: Annotated[list[str] | None, typer.Option(help="name=value of TrainConfig, repeatable.")] = None,
    json: Json = False,
) -> None:
    """Train the reference model that ships with the package again."""
    from foveate import training as face

    terminal.quiet_libraries()
    folder = face.train(out, seed, resume, option or [], terminal.note)
    if json:
        terminal.emit({"model": str(folder)})
    else:
        terminal.out.print(f"the model is in {folder}", markup=False, soft_wrap=True)
