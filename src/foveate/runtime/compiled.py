"""Compiled models: hooks that come later are not in their graphs."""

from __future__ import annotations

import sys

import torch
from torch import nn

from foveate.errors import UnsupportedModelError


def refuse_compiled(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` for a model of which a part is compiled."""
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule":
            raise UnsupportedModelError(
                f"{type(module).__name__} is compiled, and compiled code ignores hooks that come later: compress the plain "
                "model first, then compile it"
            )


def forget_compiled() -> None:
    """Graphs compiled of ``model.forward``, or of a function that calls the model, would go on without our hooks: whoever
    keeps them, they are compiled anew at their next call."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.convert_frame.input_codes.seen:
        torch.compiler.reset()
