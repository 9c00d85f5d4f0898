"""What a model is made of, for saying that it is as it was."""

from __future__ import annotations

from typing import Any

from torch import nn

HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks"),
)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Hooks, attributes, classes and configs of every module. Take it after a first forward: stock code adds its own
    hooks then."""
    state: dict[str, Any] = {"config": model.config.to_dict()}  # type: ignore[operator,union-attr]
    for name, module in model.named_modules():
        state[name] = {
            "class": type(module),
            "attributes": sorted(vars(module)),
            "config": id(getattr(module, "config", None)),
            "attention": getattr(getattr(module, "config", None), "_attn_implementation", None),
            "hooks": {kind: list(getattr(module, kind)) for kind in HOOKS},
        }
    return state
