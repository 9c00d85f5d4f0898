"""Hooks: those of one module are one for torch, run in turn, and do nothing once they are removed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import tiny
import torch
from torch import nn

import foveate
from foveate.runtime.hooks import Hooks


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, more: float = 0.0) -> torch.Tensor:
        return x + more


def test_hooks_of_a_module_run_in_turn() -> None:
    """Each is given what the one before it has made of the arguments; those of the user stay where they were."""
    module, hooks, said = Sum(), Hooks(), list[tuple[str, float]]()

    def adds(name: str, more: float) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            said.append((name, kwargs.get("more", 0.0)))
            return (args, {"more": kwargs.get("more", 0.0) + more}) if more else None

        return hook

    module.register_forward_pre_hook(adds("user", 1.0), with_kwargs=True)
    for name, more in (("a", 2.0), ("b", 0.0), ("c", 4.0)):
        hooks.pre(module, adds(name, more))
    hooks.pre(module, adds("second", 0.0), first=True)
    hooks.pre(module, adds("first", 8.0), first=True)
    assert module(torch.zeros(())) == 15.0
    assert said == [("first", 0.0), ("second", 8.0), ("user", 8.0), ("a", 9.0), ("b", 11.0), ("c", 11.0)]
    assert len(module._forward_pre_hooks) == 3
    hooks.remove()
    assert module(torch.zeros(())) == 1.0


def test_hooks_that_are_removed_on_the_way_do_nothing() -> None:
    module, hooks = Sum(), Hooks()
    hooks.pre(module, lambda *_: hooks.remove())
    hooks.pre(module, lambda module, args, kwargs: (args, {"more": 1.0}))
    assert module(torch.zeros(())) == 0.0


def test_a_removed_handle_is_gone_with_its_last_reference() -> None:
    """What it remembers of images, and their memory, must not wait until Python looks for cycles."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    gc.collect()
    gc.disable()
    try:
        handle = foveate.compress(model, foveate.VisionZip(keep=0.5))
        with torch.no_grad():
            model(**batch)
        runtime = weakref.ref(handle._runtime)
        handle.remove()
        del handle
        assert runtime() is None
    finally:
        gc.enable()
