"""What a command is given, checked before torch is imported: words of which there are few, and folders of models."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from foveate.errors import nearest
from foveate.lab.terminal import CommandError

#: Models by a name of their own -> the folder in the package of the reference models.
REFERENCES = {"reference": "qwen2_5_vl", "reference-qwen2_5_vl": "qwen2_5_vl", "reference-llava": "llava"}
DTYPES = ("float32", "bfloat16", "float16")
#: What a budget counts, in words.
COUNTED: dict[str, str] = {
    "tokens": "visual tokens per decoder layer",
    "flops": "FLOPs of the whole call",
    "kv": "bytes of the KV cache",
}
DENSE, BLIND, ORACLE, ANTIORACLE = "dense", "blind", "oracle", "antioracle"
#: What can be measured besides the methods.
BOUNDS = (DENSE, BLIND, ORACLE, ANTIORACLE)
#: How `foveate tune` searches.
SEARCHES = ("auto", "dial", "greedy", "layers", "sigmoid", "options")


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Raise `CommandError` unless the value is one of few."""
    if value not in choices:
        raise CommandError(f"--{option} {value!r}{nearest(value, choices)}: choose {', '.join(choices)}")


def check_dtype(name: str) -> None:
    """Raise `CommandError` unless it is ``auto`` or a name of `DTYPES`."""
    check_choice("dtype", name, ("auto", *DTYPES))


def check_budgets(budgets: Sequence[float], by: str, positions: str | None) -> None:
    """Raise `CommandError` for budgets, or a policy for positions, that no method can be set to."""
    check_choice("by", by, COUNTED)
    if positions is not None:
        check_choice("positions", positions, ("keep", "renumber"))
    for budget in budgets:
        if not 0 < budget <= 1:
            raise CommandError(f"--budget {budget}: give a share of what the stock model spends, above 0 and up to 1")


def check_asked_or_data(
    images: Sequence[Path] | None, prompt: str | None, data: Path | None, out: Path | None, overlay: Path | None
) -> tuple[tuple[Path, ...], str] | None:
    """One question, its images first; None: a file of questions. Raise `CommandError` for neither, or for some of both."""
    one = {"--image": images, "--prompt": prompt, "--overlay": overlay}
    if data is not None:
        for option, value in one.items():
            if value:
                raise CommandError(f"{option} belongs to one question, and --data has many: leave one of them out")
        if not data.is_file():
            raise CommandError(f"there is no file {str(data)!r}")
        return None
    if out is not None:
        raise CommandError("--out belongs to --data, a file of questions: one question is answered on the screen")
    if not images or prompt is None:
        raise CommandError("say what to ask: --image and --prompt, or a file of questions, --data")
    return tuple(images), prompt


def check_model(name: str) -> None:
    """Raise `CommandError` for a folder that is not there or has no model; an id of the hub may be anything else."""
    if name in REFERENCES:
        return
    folder = Path(name)
    if len(folder.name) > 255:
        raise CommandError(f"--model {name[:40]!r}...: no folder and no model has so long a name")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CommandError(f"the folder {name!r} has no config.json: give the folder of a saved Hugging Face model")
    if not folder.is_dir() and (folder.is_absolute() or folder.exists() or name.startswith((".", "~"))):
        raise CommandError(f"there is no model folder {name!r}")
