"""What a command is given, checked before torch is imported: words of which there are few, and folders of models."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from foveate.errors import FoveateError, first_line, nearest
from foveate.extras import REFERENCE
from foveate.lab import index, needs
from foveate.lab.terminal import CommandError

#: The reference model that is put together of a language model and an adapter.
SMOLLM2 = "smollm2"
#: Models by a name of their own -> the name in the package of the reference models.
REFERENCES = {
    "reference": "qwen2_5_vl",
    "reference-qwen2_5_vl": "qwen2_5_vl",
    "reference-llava": "llava",
    "reference-smollm2": SMOLLM2,
}
#: What a training run of ``smollm2`` leaves in its folder, and the folder of its first stage.
ADAPTER, TOWER = "adapter.safetensors", "tower"
DTYPES = ("float32", "bfloat16", "float16")
#: How transformers computes attention, but for kernels of the hub.
ATTENTIONS = ("eager", "sdpa", "flex_attention", *(f"flash_attention_{version}" for version in (2, 3, 4)))
#: What torch calls a device, and what lets it choose.
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla", "meta")
#: What a budget counts, in words.
COUNTED: dict[str, str] = {
    "tokens": "visual tokens per decoder layer",
    "flops": "FLOPs of the whole call",
    "kv": "bytes of the KV cache",
}
#: Budgets where none is given. A model's tower may cost half of its FLOPs, so those do not go as low.
BUDGETS: dict[str, tuple[float, ...]] = {
    "tokens": (0.5, 0.35, 0.25, 0.15, 0.1),
    "flops": (0.9, 0.8, 0.7, 0.6, 0.5),
    "kv": (0.5, 0.35, 0.25, 0.15, 0.1),
}
DENSE, BLIND, ORACLE, ANTIORACLE = "dense", "blind", "oracle", "antioracle"
#: What can be measured besides the methods.
BOUNDS = (DENSE, BLIND, ORACLE, ANTIORACLE)
#: What `foveate bench` builds with random weights.
SHAPES = (
    *("qwen2.5-vl-7b", "qwen3-vl-8b", "llava-1.5-7b", "internvl3-8b"),
    *("small-qwen2.5-vl", "small-qwen3-vl", "small-llava", "small-internvl3"),
)
#: Of the reference benchmark's questions.
SPLITS = ("train", "validation", "test")
#: Its tasks, as `foveate_reference.TASKS` has them.
TASKS = (
    *("color", "shape", "count", "exist", "where", "side", "height", "read", "texture", "digit", "word", "cell", "odd"),
    *("absent", "chart", "table", "document", "pair", "move", "appear"),
)
#: How `foveate train reference` trains.
RECIPES = ("qwen2_5_vl", "llava", "large", SMOLLM2)
#: What survivors may do with their position ids, where all methods do the same.
POSITIONS = ("keep", "renumber")
ENGINES = ("transformers", "vllm")
#: How `foveate tune` searches.
SEARCHES = ("auto", "dial", "greedy", "layers", "withdrawal", "sigmoid", "options")


def check_all(*each: Callable[[], object]) -> None:
    """Make every check, and raise one error with the sentences of all that fail: one mistake should not hide another."""
    found: dict[str, FoveateError] = {}
    for check in each:
        try:
            check()
        except FoveateError as error:
            found.setdefault(str(error), error)
    if len(found) == 1:
        raise next(iter(found.values()))
    if found:
        raise CommandError("\nalso: ".join(found))


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Raise `CommandError` unless the value is one of few."""
    if value not in choices:
        raise CommandError(f"--{option} {value!r}{nearest(value, choices)}: choose {', '.join(choices)}")


def check_at_least_1(option: str, value: int | None) -> None:
    """Raise `CommandError` for a count of nothing; None: nobody said one."""
    if value is not None and value < 1:
        raise CommandError(f"--{option} {value}: give a whole number, at least 1")


def check_dtype(name: str) -> None:
    """Raise `CommandError` unless it is ``auto`` or a name of `DTYPES`."""
    check_choice("dtype", name, ("auto", *DTYPES))


def check_attn(name: str | None) -> None:
    """Raise `CommandError` for what no transformers calls attention; whether it is there, for this model, is known later."""
    if name is None or "/" in name or name.removeprefix("paged|") in ATTENTIONS:
        return
    raise CommandError(
        f"--attn {name!r}{nearest(name, ATTENTIONS)}: choose {', '.join(ATTENTIONS)}, or a kernel of the hub, as owner/name"
    )


def check_seed(seed: int) -> None:
    """Raise `CommandError` for a seed below 0."""
    if seed < 0:
        raise CommandError(f"--seed {seed}: give a whole number, 0 or more")


def check_device(name: str) -> None:
    """Raise `CommandError` for what torch does not call a device; whether it is there, torch will say."""
    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and not number.isdigit()):
        raise CommandError(f"--device {name!r}: say cuda, for a GPU of NVIDIA or AMD, mps, for Apple's, or cpu")


def check_trained(name: str) -> None:
    """Raise `CommandError` for an adapter that is neither a folder that is there nor an id of the hub."""
    if not ("/" in name or "\\" in name or Path(name).is_dir()):
        raise CommandError(
            f"--adapter {name!r} is neither a folder that is there nor the id of a repository on the hub"
        )


def check_images_and_prompts(images: Sequence[Path], prompts: Sequence[str]) -> None:
    """Raise `CommandError` unless there is a prompt for each image, one for all, or several about one."""
    if prompts and not images:
        raise CommandError("--prompt needs --image: without images, questions come with answers of their own")
    counts = len(images), len(prompts)
    if images and (not prompts or (counts[0] != counts[1] and 1 not in counts)):
        raise CommandError(
            f"{counts[0]} --image and {counts[1]} --prompt: give one prompt for each image, one for all, or several about one "
            "image"
        )


def check_budgets(budgets: Sequence[float], option: str = "budget") -> None:
    """Raise `CommandError` for budgets that no method can be set to."""
    for budget in budgets:
        if not 0 < budget <= 1:
            raise CommandError(f"--{option} {budget}: give a share of what the stock model spends, above 0 and up to 1")


def check_asked_or_data(
    images: Sequence[Path] | None, prompt: str | None, data: Path | None, out: Path | None, overlay: Path | None
) -> tuple[tuple[Path, ...], str] | None:
    """One question, its images first; None: a file of questions. Raise `CommandError` for neither, or for some of both."""
    one = {"--image": images, "--prompt": prompt, "--overlay": overlay}
    if data is not None:
        for option, value in one.items():
            if value:
                raise CommandError(f"{option} belongs to one question, and --data has many: leave one of them out")
        if os.path.isdir(data):
            raise CommandError(f"--data {str(data)!r} is a folder: give the file of questions in it")
        if not os.path.isfile(data):  # unlike Path.is_file, also of a name that is too long
            raise CommandError(f"there is no file {str(data)!r}")
        return None
    if out is not None:
        raise CommandError("--out belongs to --data, a file of questions: one question is answered on the screen")
    if not images or prompt is None:
        raise CommandError("say what to ask: --image and --prompt, or a file of questions, --data")
    return tuple(images), prompt


def check_left_out(given: Collection[str], options: Collection[str], why: str) -> None:
    """Raise `CommandError` for options that were given and would do nothing; ``why`` goes after their names."""
    found = [option for option in options if option in given]
    if found:
        be, them = ("is", "it") if len(found) == 1 else ("are", "them")
        raise CommandError(f"{' and '.join(found)} {be} {why}: leave {them} out")


def check_engine(engine: str, engine_args: str, data: Path | None) -> None:
    """Raise `CommandError` unless a file of questions can be asked there."""
    check_choice("engine", engine, ENGINES)
    if data is None and (engine != "transformers" or engine_args):
        given = "--engine is" if engine != "transformers" else "--engine-args are"
        raise CommandError(f"{given} for a file of questions, --data: one question is asked in transformers")
    if engine_args and engine != "vllm":
        raise CommandError("--engine-args are options of vLLM: add --engine vllm, or leave them out")


def check_scenes(count: int, most: int) -> None:
    """Raise `CommandError` unless so many scenes can be drawn."""
    if not 1 <= count <= most:
        raise CommandError(f"--scenes {count}: choose 1 to {most}")


def check_answers(out: Path, data: Path) -> None:
    """Raise `CommandError` unless answers can be written there: beside the questions, into a folder that is there."""
    if out.resolve() == data.resolve():
        raise CommandError(f"--out {str(out)!r} is the file of --data: give another name")
    if os.path.isdir(out):
        raise CommandError(f"--out {str(out)!r} is a folder: name a file in it")
    if not os.path.isdir(out.parent) or len(out.name) > 240:
        raise CommandError(f"--out {str(out)!r} cannot be written: give a file in a folder that is there")


def check_model(name: str) -> None:
    """Raise `CommandError` for a folder that is not there or has no model; an id of the hub may be anything else."""
    if name in REFERENCES:
        needs.check(REFERENCE, f"--model {name}")
    if name in REFERENCES or "://" in name:  # vLLM knows more places than the hub
        return
    if not name.strip():
        raise CommandError(f"--model is empty: give a folder, a hub id, or {', '.join(REFERENCES)}")
    folder = Path(name)
    if len(folder.name) > 255:
        raise CommandError(f"--model {name[:40]!r}...: no folder and no model has so long a name")
    if is_run(name):
        return
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CommandError(f"the folder {name!r} has no config.json: give the folder of a saved Hugging Face model")
    if folder.is_dir():
        _check_config(folder / "config.json")
    if folder.is_file():
        raise CommandError(f"--model {name!r} is a file: give the folder of a saved Hugging Face model, or a hub id")
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~"))):
        raise CommandError(f"there is no model folder {name!r}")
    if not folder.is_dir() and ("/" not in name or name.count("/") > 1):
        raise CommandError(f"there is no model folder {name!r}, and that is no hub id, as owner/name{_meant(name)}")


def is_run(name: str) -> bool:
    """Whether a name is the folder of a training run of ``smollm2``, finished or not."""
    folder = Path(name)
    begun = (folder / TOWER).is_dir() and not (folder / "config.json").is_file()
    return len(folder.name) <= 255 and ((folder / ADAPTER).is_file() or begun)


def check_in_one_folder(name: str) -> None:
    """Raise `CommandError` for a model that is put together when it is loaded, where vLLM wants the folder of one."""
    if REFERENCES.get(name) == SMOLLM2 or is_run(name):
        raise CommandError(
            f"{name} is put together when it is loaded, and vLLM reads a model from a folder. In Python, model, processor = "
            f"foveate_reference.load({REFERENCES.get(name, name)!r}), then save_pretrained('folder') of both writes one"
        )


def _check_config(path: Path) -> None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"cannot read {str(path)!r}: {first_line(error)}") from None
    if not isinstance(data, dict):
        raise CommandError(f"{str(path)!r} is not the configuration of a model: give the folder of a saved one")


def check_shape(name: str) -> None:
    """Raise `CommandError` unless there is such a shape."""
    if name not in SHAPES:
        raise CommandError(
            f"--shape {name!r}{nearest(name, SHAPES)}: choose one of {', '.join(SHAPES)}; a real model is given with --model"
        )


def check_type(name: str) -> None:
    """Raise `CommandError` for what is neither a file or folder nor a model type that transformers names in its lists."""
    if os.path.exists(name):
        return
    if "/" in name or os.sep in name or name.startswith(("~", ".")) or name.endswith(".json"):
        raise CommandError(
            f"there is no file or folder {name!r}: give one that is here, or a model type, such as qwen2_5_vl"
        )
    found = importlib.util.find_spec("transformers")
    lists = Path(str(found.origin)).parent / "models" / "auto" if found is not None else Path("nowhere")
    if not lists.is_dir():
        return
    if not any(f'"{name}"' in path.read_text(encoding="utf-8") for path in lists.glob("*.py")):
        folders = [path.name for path in lists.parent.iterdir() if path.is_dir()]
        raise CommandError(f"this transformers has no model type {name!r}{nearest(name, folders)}")


def type_of(name: str) -> str:
    """The model type that a name is, or that a config file or a folder with one says; "": it says none."""
    place = Path(name)
    if not place.exists():
        return name
    try:
        data = json.loads((place / "config.json" if place.is_dir() else place).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(data.get("model_type", "")) if isinstance(data, dict) else ""


def _meant(name: str) -> str:
    """What somebody may have meant by a model that is none."""
    if name in SHAPES:
        return f": it is a shape, of `foveate bench`, so say --shape {name}"
    if name.lower() in [str(one["name"]) for one in index.methods() or ()]:
        return f": it is a method, so say --method {name}, or -M"
    return nearest(name, REFERENCES)
