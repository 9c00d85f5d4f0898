"""Commands that train: ``train reference``, and ``train METHOD`` for each method that has something to learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from foveate.extras import REFERENCE
from foveate.lab import checks, completion, needs, outputs, terminal, words
from foveate.lab.cli.asking import check_asked
from foveate.lab.typed import (
    MACHINE,
    QUESTIONS,
    Device,
    Dtype,
    Json,
    Model,
    OptionsOfOne,
    Overwrite,
    keep_option,
    out_option,
    seed_option,
)
from foveate.training.data import check_lines
from foveate.training.recipe import CURRICULA, Recipe

RECIPE = "Recipe"


def reference(
    *,
    recipe: Annotated[
        str,
        typer.Option(
            help="qwen2_5_vl, llava, large (47 M parameters, for a GPU), or smollm2 (a pretrained language model).",
            rich_help_panel=RECIPE,
            autocompletion=completion.among(*checks.RECIPES),
        ),
    ] = "qwen2_5_vl",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of TrainConfig or SmolConfig, as name=value; repeatable.", rich_help_panel=RECIPE
        ),
    ] = None,
    seed: Annotated[int, seed_option("Decides the first weights and the scenes.", RECIPE)] = 0,
    device: Annotated[
        str,
        typer.Option(help="cpu or cuda.", rich_help_panel=MACHINE, autocompletion=completion.among("cpu", "cuda")),
    ] = "cpu",
    out: Annotated[
        Path,
        out_option("Folder for checkpoint and model; a run that was stopped goes on there."),
    ],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a reference model of the package anew."""
    checks.check_all(
        lambda: outputs.check_folder("out", out),
        lambda: checks.check_seed(seed),
        lambda: checks.check_choice("recipe", recipe, checks.RECIPES),
        lambda: checks.check_device(device),
        lambda: needs.check(REFERENCE, "foveate train reference"),
    )
    from foveate.lab.train import reference as face

    terminal.quiet_libraries()
    folder = face.train(out, recipe, seed, device, settings or [], overwrite, terminal.note)
    if json:
        terminal.emit({"model": str(folder)})
    else:
        terminal.out.print(f"the model is in {folder}", markup=False, soft_wrap=True)


def trainable() -> dict[str, str]:
    """Every method that can be trained, and what the first line of its class says."""
    from foveate.lab import index

    found = index.own_methods()
    if found is None:
        from foveate.lab import declared

        found = declared.methods()
    return {each["name"]: each["doc"].partition("\n")[0] for each in found if each["trained_here"]}


def method(name: str, says: str) -> Callable[..., None]:
    """The command that trains one method."""

    def train(
        *,
        data: Annotated[
            str,
            typer.Option(
                "--data",
                "-d",
                help="What to train on: 'reference', or a folder, file or hub id of chats, columns `messages` and `images`.",
                rich_help_panel=QUESTIONS,
                autocompletion=completion.among("reference"),
            ),
        ] = "reference",
        split: Annotated[str, typer.Option(help="Which part of the data.", rich_help_panel=QUESTIONS)] = "train",
        samples: Annotated[
            int | None,
            typer.Option(
                help="How many chats are used.", show_default="all; 8000 of 'reference'", rich_help_panel=QUESTIONS
            ),
        ] = None,
        keep: Annotated[
            float | None,
            keep_option("Share of visual tokens to train for, on average over decoder layers.", "the paper's"),
        ] = None,
        option: OptionsOfOne = None,
        curriculum: Annotated[
            str | None,
            typer.Option(
                help="How the share changes in training: hard-to-easy, easy-to-hard, constant, or shares: 0.1,0.2,0.3.",
                show_default="the paper's",
                rich_help_panel=RECIPE,
                autocompletion=completion.among(*CURRICULA),
            ),
        ] = None,
        settings: Annotated[
            list[str] | None,
            typer.Option(
                "--set",
                help="A setting of the recipe (lr, epochs, steps, batch, rank ...), as name=value; repeatable.",
                rich_help_panel=RECIPE,
                autocompletion=completion.a_setting,
            ),
        ] = None,
        seed: Annotated[int, seed_option("Decides the order of the data, the first weights and dropout.", RECIPE)] = 0,
        model: Model = "reference",
        dtype: Dtype = "auto",
        device: Device = "auto",
        out: Annotated[
            Path,
            out_option(
                "Folder for what is trained, which foveate.compress takes; a run that was stopped goes on there."
            ),
        ],
        overwrite: Overwrite = False,
        json: Json = False,
    ) -> None:
        checks.check_all(
            lambda: words.check_one(name, keep, option or [], None),
            lambda: check_asked(model, dtype, device, [], []),
            lambda: checks.check_at_least_1("samples", samples),
            lambda: checks.check_seed(seed),
            lambda: _check_data(data),
            lambda: outputs.check_folder("out", out),
        )
        from foveate.lab.options import method_from_words
        from foveate.lab.train import method as face
        from foveate.serialise import build

        terminal.quiet_libraries()
        recipe = build(Recipe, words.assigned(Recipe, settings or [], "set"))
        asked = method_from_words(name, keep, option or [], None)
        request = face.Request(out, asked, model, data, split, samples, curriculum, recipe, seed, dtype, device)
        found = face.train(request, overwrite, terminal.note if face.is_main() else lambda line: None)
        if json and face.is_main():
            terminal.emit(face.to_dict(found))
        elif face.is_main():
            face.show(found, terminal.out)

    train.__doc__ = f"Train a model for {name}: {says}"
    return train


def _check_data(data: str) -> None:
    path = Path(data)
    if path.suffix in (".json", ".jsonl", ".parquet") and not path.is_file():
        raise terminal.CommandError(f"there is no file {data!r}")
    if path.suffix == ".jsonl":
        check_lines(path)
