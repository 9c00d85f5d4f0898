"""A stock model that works on merged tokens as ``positions="virtual"`` says: each member stands in its place."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch import Tensor


def in_full(model: Any, batch: dict[str, Tensor], of: Tensor, rows: Tensor) -> Tensor:
    """Logits of the stock model with every member in its place.

    Args:
        batch: one row.
        of: ``(L,)`` which of ``rows`` the token at each place is a copy of.
        rows: ``(P, C)`` of text and of merged tokens, before the first layer.
    """
    together = torch.nn.functional.one_hot(of).to(rows.dtype)  # (L, P)
    mean = together / together.sum(0)

    def averaged(x: Tensor) -> Tensor:
        return (together @ (mean.T @ x[0]))[None]

    def before(i: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            x = args[0] if args else kwargs["hidden_states"]
            x = rows[of][None] if i == 0 else averaged(x)
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    hooks = []
    for i, layer in enumerate(tiny.lm(model).layers):
        hooks.append(layer.register_forward_pre_hook(before(i), with_kwargs=True))
        hooks.append(layer.self_attn.register_forward_hook(lambda m, a, out: (averaged(out[0]), *out[1:])))
    try:
        logits: Tensor = model(**batch).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits
