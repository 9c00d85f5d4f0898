"""A trained method: a folder, or a hub repository, with a PEFT LoRA adapter and the method that it was trained with.

`save` writes ``foveate_method.json`` beside the adapter; `attach` puts the adapter on a model and gives what takes it off.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from foveate.errors import AdapterError, ConfigError, UnknownNameError, first_line
from foveate.method import Host, Method
from foveate.methods import list_methods, method_from_json
from foveate.serialise import from_json

METHOD, WEIGHTS, CONFIG = "foveate_method.json", "adapter_model.safetensors", "adapter_config.json"
CHECKPOINTS = "checkpoints"  # a folder beside them, of the training
NAME = "foveate"
_BROKEN = (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, ArithmeticError, SafetensorError)


def is_source(text: str) -> bool:
    """Whether ``text`` means a folder or a hub id, and not the name of a method."""
    if not text.strip() or not ("/" in text or "\\" in text or os.path.isdir(text)):
        return False
    return text.lower() not in list_methods()


def save(folder: Path, method: Method, host: Host) -> Path:
    """Write the method, and what model it is for, beside the adapter in ``folder``."""
    path = folder / METHOD
    content = {"method": method.to_json(), "model": {"family": host.family, "layers": host.layers}}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def attach(model: nn.Module, source: str, host: Host) -> tuple[Method, Callable[[], None]]:
    """Put the adapter of ``source`` on ``model``, in place.

    Returns:
        The method that belongs to it, and a function that makes the model what it was. The adapter's matrices stay beside
        the model's own, which are not touched: taking it off is exact.

    Raises:
        AdapterError: there is no such folder, it is not whole, or it is an adapter for another model. The model is left as
            it was.
    """
    folder = _folder(source)
    method = _method(folder, source, host)
    try:
        import peft
    except ImportError:
        raise AdapterError("adapters need peft: pip install 'foveate[train]'") from None
    if any(isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) for module in model.modules()):
        raise AdapterError(
            "the model has an adapter already: merge it (merge_and_unload()), or give the model without it"
        )
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS)
    except _BROKEN as error:
        raise AdapterError(f"cannot read the adapter in {source!r}: {first_line(error)}") from None
    if not isinstance(config, peft.LoraConfig):
        raise AdapterError(f"{source!r} holds a {config.peft_type} adapter: only LoRA adapters can be attached")

    undo = _remember(model)
    prefix = "base_model.model."
    weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that keys are missing is said below
            peft.inject_adapter_in_model(config, model, NAME)
            loaded: Any = peft.set_peft_model_state_dict(model, weights, NAME)
    except _BROKEN as error:
        undo()
        raise AdapterError(f"the adapter in {source!r} does not fit the model: {first_line(error)}") from None
    missing = [key for key in loaded.missing_keys if f".{NAME}." in key or key.endswith(f".{NAME}")]
    if missing or loaded.unexpected_keys:
        undo()
        raise AdapterError(
            f"the adapter in {source!r} does not fit the model: {len(missing)} of its matrices are missing and "
            f"{len(loaded.unexpected_keys)} have no place; give the model that it was trained on"
        )
    return method, undo


def _folder(source: str) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
            raise UnknownNameError(
                f"{source!r} is neither a method, nor a folder with an adapter, nor the id of one on the hub"
            )
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(source, allow_patterns=[METHOD, WEIGHTS, CONFIG]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise AdapterError(
                f"cannot get {source!r} (no such folder, so it was looked for on the Hugging Face hub): {first_line(error)}"
            ) from None
    if (folder / CHECKPOINTS).is_dir() and not (folder / METHOD).is_file():
        raise AdapterError(f"the training in {source!r} has not ended: go on with `foveate train adsc --resume`")
    for name in (METHOD, CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError(f"{source!r} has no {name}: give what `foveate train adsc` wrote")
    return folder


def _method(folder: Path, source: str, host: Host) -> Method:
    try:
        content = from_json((folder / METHOD).read_text(encoding="utf-8"))
        data, model = content["method"], content["model"]
        trained = (str(model["family"]), int(model["layers"]))
        method = method_from_json(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = str(error) if isinstance(error, ConfigError | UnknownNameError) else "it is not what `save` writes"
        raise AdapterError(f"cannot read {METHOD} in {source!r}: {said}") from None
    if trained != (host.family, host.layers):
        raise AdapterError(
            f"the adapter in {source!r} is for a {trained[0]} with {trained[1]} decoder layers, and this model is a "
            f"{host.family} with {host.layers}: give the model that it was trained on"
        )
    return method


def _remember(model: nn.Module) -> Callable[[], None]:
    """What puts every module, flag and attribute back that injecting an adapter may change."""
    modules = dict(model.named_modules())
    attributes = set(vars(model))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def undo() -> None:
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            if name and getattr(modules[parent], child) is not module:
                setattr(modules[parent], child, module)
        for name in set(vars(model)) - attributes:
            delattr(model, name)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])

    return undo
