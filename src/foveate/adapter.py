"""The LoRA adapter of a trained method, in PEFT's own files: put on a model, taken off again, written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from foveate import extras
from foveate.errors import AdapterError, first_line

WEIGHTS, CONFIG = FILES = "adapter_model.safetensors", "adapter_config.json"
NAME = "foveate"
PREFIX = "base_model.model."  # of every tensor, as PEFT names them
_BROKEN = (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, ArithmeticError)


def attach(model: nn.Module, folder: Path, source: str) -> Callable[[], None]:
    """Put the adapter in ``folder`` on ``model``, in place; messages call it ``source``.

    Returns:
        A function that makes the model what it was. The adapter's matrices stay beside the model's own, which are not touched:
        taking it off is exact.

    Raises:
        AdapterError: it cannot be read, or is one for another model. The model is left as it was.
    """
    try:
        import peft
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise AdapterError(f"adapters need peft: {extras.install('peft')} gets it") from None
    if _tuned(model):
        raise AdapterError(
            "the model has an adapter already: merge it (merge_and_unload()), or give the model without it"
        )
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS)
    except (*_BROKEN, SafetensorError) as error:
        raise AdapterError(f"cannot read the adapter in {source!r}: {first_line(error)}") from None
    if not isinstance(config, peft.LoraConfig):
        raise AdapterError(f"{source!r} holds a {config.peft_type} adapter: only LoRA adapters can be attached")

    undo = _remember(model)
    weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
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
    return undo


def save(model: nn.Module, folder: Path) -> list[str]:
    """Write the adapter that is on ``model``, a PEFT model or one with an adapter inside; the names of its files, if any."""
    if not _tuned(model):
        return []
    import peft
    from safetensors.torch import save_file

    configs: dict[str, Any] = getattr(model, "peft_config", {})
    if len(configs) != 1 or not all(isinstance(config, peft.LoraConfig) for config in configs.values()):
        kinds = ", ".join(f"{name}: {config.peft_type}" for name, config in configs.items()) or "none that can be named"
        raise AdapterError(
            f"only a single LoRA adapter can be saved, and this model has {kinds}: merge or delete the others"
        )
    if isinstance(model, peft.PeftModel):
        type(model).save_pretrained(
            model, str(folder), save_embedding_layers=False
        )  # not what a handle has put before it
        return list(FILES)
    ((name, config),) = configs.items()
    tensors = peft.get_peft_model_state_dict(model, adapter_name=name)
    tensors = {PREFIX + key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    return list(FILES)


def _tuned(model: nn.Module) -> bool:
    """Tell whether there is an adapter on a model, whoever has put it there."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return False
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _remember(model: nn.Module) -> Callable[[], None]:
    """Return what puts every module, flag and attribute back that injecting an adapter may change."""
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
