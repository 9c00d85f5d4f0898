"""A trained method: a folder, or a hub repository, with the method, the weights of its learned parts, and a LoRA adapter.

`save` writes it, `read` reads it. ``foveate_method.json`` says what the method is, which model it is for, and which files
belong to it: ``foveate_modules.safetensors`` has the learned parts, the others are an adapter as PEFT writes it
(`foveate.adapter`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveate import adapter
from foveate.errors import AdapterError, ConfigError, UnknownNameError, first_line
from foveate.method import Host, Method
from foveate.methods import list_methods, method_from_dict
from foveate.runtime.learned import part_names
from foveate.serialise import from_json, read_text

METHOD, MODULES = "foveate_method.json", "foveate_modules.safetensors"
CONFIG = "config.json"  # of a model that is beside it
CHECKPOINTS = "checkpoints"  # a folder beside them, of the training
WIDTHS = ("width", "tower_width")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Trained:
    """A trained method, as it was read from a folder.

    Attributes:
        source: what the user gave.
        folder: where its files are.
        method: what was trained.
        modules: tensors of its learned parts, by name.
        adapted: an adapter belongs to it.
    """

    source: str
    folder: Path
    method: Method
    modules: Mapping[str, Tensor]
    adapted: bool


def is_source(text: str) -> bool:
    """Tell whether ``text`` means a folder or a hub id, and not the name of a method."""
    if not text.strip() or not ("/" in text or "\\" in text or os.path.isdir(text)):
        return False
    return text.lower() not in list_methods()


def save(folder: Path, method: Method, host: Host, modules: nn.ModuleDict, model: nn.Module) -> None:
    """Write a method, what model it is for, its learned parts, and the adapter that is on ``model``, if there is one."""
    save_file = _safetensors().save_file
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in modules.state_dict().items()}
    if folder.is_file():
        raise AdapterError(f"{str(folder)!r} is a file: give the name of a folder, which is made if it is not there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = adapter.save(model, folder)
        if tensors:
            save_file(tensors, str(folder / MODULES), metadata={"format": "pt"})
            files = [*files, MODULES]
        made_for = {name: getattr(host, name) for name in ("family", "layers", *WIDTHS)}
        made_for["dtype"] = str(getattr(model, "dtype", "")).removeprefix("torch.")
        base = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
        if base:
            made_for["name"] = base
        content = {"method": method.to_dict(), "model": made_for, "files": files}
        (folder / METHOD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise AdapterError(f"cannot write to {str(folder)!r}: {first_line(error)}") from None


def base_of(source: str) -> tuple[str, dict[str, str]]:
    """Return the model that a folder, or a repository of the hub, belongs on, and what to load it with.

    It is the folder's own model, if it has one, or the one that it names, in the dtype in which that was loaded then.

    Raises:
        AdapterError: there is no such folder, it cannot be read, or it says no model.
    """
    folder = _folder(source)
    try:
        model = from_json(read_text(folder / METHOD))["model"]
        name, dtype = model.get("name"), model.get("dtype")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(source, error) from None
    if (folder / CONFIG).is_file():
        return source, {}  # of the hub: only this file and the method's own were fetched yet
    if not isinstance(name, str) or not name:
        raise AdapterError(
            f"{source!r} does not say which model it belongs on: load that one, and foveate.compress(model, {source!r})"
        )
    return name, {"dtype": dtype} if dtype in DTYPES else {}


def read(source: str, host: Host) -> Trained:
    """Read a trained method from a folder, or from a repository of the hub.

    Raises:
        AdapterError: there is no such folder, it is not whole, or it is for another model.
    """
    folder = _folder(source)
    content = _content(folder, source, host)
    method: Method = content["method"]
    files = content.get("files", list(adapter.FILES))  # folders of before there were learned parts have an adapter
    known = (*adapter.FILES, MODULES)
    if not isinstance(files, list) or not set(files) <= set(known):
        raise AdapterError(
            f"cannot read {METHOD} in {source!r}: its files are {files!r}, expected some of {', '.join(known)}"
        )
    for name in files:
        if not (folder / name).is_file():
            raise AdapterError(f"{source!r} has no {name}: give what `foveate train` or `Handle.save_pretrained` wrote")
    modules = _tensors(folder / MODULES, source) if MODULES in files else {}
    return Trained(source, folder, method, modules, adapter.FILES[0] in files)


def fill(modules: nn.ModuleDict, names: Sequence[str], trained: Trained) -> None:
    """Put trained weights into learned parts that were just made, those of the parts of a sum called ``names``.

    Raises:
        AdapterError: tensors are missing, have no place, or are of another shape.
    """
    renamed = dict(zip(part_names(trained.method), names))
    given = {}
    for name, tensor in trained.modules.items():
        part, _, rest = name.partition(".")
        given[f"{renamed.get(part, part)}.{rest}"] = tensor
    own = {name: tensor for name, tensor in modules.state_dict().items() if name.partition(".")[0] in renamed.values()}
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [name for name in sorted(own.keys() & given.keys()) if own[name].shape != given[name].shape]
    where = f"the learned parts in {trained.source!r} do not fit {trained.method!r} on this model"
    if missing or extra:
        absent = f"{len(missing)} tensors are missing ({_few(missing)})" if missing else ""
        homeless = f"{len(extra)} have no place ({_few(extra)})" if extra else ""
        raise AdapterError(f"{where}: {' and '.join(filter(None, (absent, homeless)))}")
    if shapes:
        name = shapes[0]
        raise AdapterError(
            f"{where}: {name} is {tuple(given[name].shape)} there and {tuple(own[name].shape)} here; give the model that they "
            "were trained on"
        )
    modules.load_state_dict(given, strict=False)


def is_whole(folder: Path) -> bool:
    """Tell whether a folder has all of the files that it says it has."""
    try:
        files = from_json((folder / METHOD).read_text(encoding="utf-8"))["files"]
        return all((folder / name).is_file() for name in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fill_alike(modules: nn.ModuleDict, method: Method, trained: Trained) -> list[str]:
    """Put trained weights into learned parts of ``method`` that are alike: the same method, whatever its options.

    Parts that were not trained stay as they were made.

    Returns:
        The names of the parts that have trained weights now.

    Raises:
        AdapterError: as `fill`, where an option decides how large a learned part is.
    """
    free = list(zip(part_names(method), method.parts()))
    kept, names = [], []
    for name, part in zip(part_names(trained.method), trained.method.parts()):
        own = next((each for each in free if type(each[1]) is type(part)), None)
        names.append("" if own is None else own[0])
        if own is not None:
            free.remove(own)
            kept.append(name)
    tensors = {name: tensor for name, tensor in trained.modules.items() if name.partition(".")[0] in kept}
    if tensors:
        fill(modules, names, replace(trained, modules=tensors))
    return [name for name in names if name]


def adapted(model: nn.Module, source: str, host: Host) -> Trained:
    """Read what is in a folder, and put its adapter, if it has one, on ``model`` to stay.

    So the method may be attached again and again, with its learned parts (`foveate.handle.attach_learned`).

    Raises:
        AdapterError: as `read`.
    """
    found = read(source, host)
    if found.adapted:
        adapter.attach(model, found.folder, source)
    return found


def _folder(source: str) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
            raise UnknownNameError(
                f"{source!r} is neither a method, nor a folder with a trained one, nor the id of one on the hub"
            )
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(source, allow_patterns=[METHOD, MODULES, *adapter.FILES, CONFIG]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise AdapterError(
                f"cannot get {source!r} (no such folder, so it was looked for on the Hugging Face hub): {first_line(error)}"
            ) from None
    if not (folder / METHOD).is_file():
        if (folder / CHECKPOINTS).is_dir():
            raise AdapterError(f"the training in {source!r} has not ended: the same `foveate train` command goes on")
        raise AdapterError(f"{source!r} has no {METHOD}: give what `foveate train` or `Handle.save_pretrained` wrote")
    return folder


def _content(folder: Path, source: str, host: Host) -> dict[str, Any]:
    """Return what ``foveate_method.json`` says, with the method made of it."""
    try:
        content = from_json(read_text(folder / METHOD))
        model = content["model"]
        trained = (str(model["family"]), int(model["layers"]))
        widths = {name: int(model[name]) for name in WIDTHS if name in model}
        content = {**content, "method": method_from_dict(content["method"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(source, error) from None
    if trained != (host.family, host.layers):
        raise AdapterError(
            f"what is in {source!r} is for a {trained[0]} with {trained[1]} decoder layers, and this model is a "
            f"{host.family} with {host.layers}: give the model that it was trained on"
        )
    for name, width in widths.items():
        if width != getattr(host, name):
            part = "language model" if name == "width" else "vision tower"
            raise AdapterError(
                f"what is in {source!r} is for a {part} whose tokens have {width} channels, and this one's have "
                f"{getattr(host, name)}: give the model that it was trained on"
            )
    return content


def _unreadable(source: str, error: Exception) -> AdapterError:
    said = (
        str(error) if isinstance(error, ConfigError | UnknownNameError) else "it is not what `save_pretrained` writes"
    )
    return AdapterError(f"cannot read {METHOD} in {source!r}: {said}")


def _tensors(path: Path, source: str) -> dict[str, Tensor]:
    safetensors = _safetensors()
    try:
        tensors: dict[str, Tensor] = safetensors.load_file(str(path))
    except Exception as error:  # a safetensors error is of a class of its own
        raise AdapterError(f"cannot read {MODULES} in {source!r}: {first_line(error)}") from None
    return tensors


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise AdapterError("trained methods are kept as safetensors: pip install safetensors") from None
    return safetensors.torch


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
