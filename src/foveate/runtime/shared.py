"""Decoder layers that have no keys and values of their own, and attend to those of the last layer of their kind that has.

What such a layer sees is what that one's attention saw, whoever has left since then: a token is gone for good where no layer
before the first of these has it. No tokens leave before them. Stock code may go on from there with the last rows of the
sequence alone, as nobody needs the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from foveate.models.family import Decoder
from foveate.runtime.recurrent import attention_of


def sources_of(layers: Sequence[nn.Module], spec: Decoder, config: Any) -> list[int]:
    """Return the layer whose keys and values each layer attends to: itself, for most."""
    if not spec.shared:
        return list(range(len(layers)))
    kinds: Sequence[str] = getattr(config, spec.kinds) if spec.kinds else [""] * len(layers)
    last: dict[str, int] = {}
    found = []
    for i, (layer, kind) in enumerate(zip(layers, kinds)):
        if not getattr(attention_of(layer, spec), spec.shared):
            last[kind] = i
        found.append(last[kind])
    return found


def own(sources: Sequence[int]) -> int:
    """Tell how many layers there are before the first one that has no keys of its own."""
    return next((i for i, source in enumerate(sources) if source != i), len(sources))


def rows_of(spec: Decoder, kwargs: dict[str, Any]) -> int:
    """With how many of the last rows of the sequence stock code calls a layer."""
    lengths = []
    for name, axis in spec.layer_args.items():
        value = kwargs.get(name)
        value = value[0] if isinstance(value, tuple) else value
        if axis != "mask" and isinstance(value, Tensor):
            lengths.append(value.shape[1 if axis == "own" else int(axis)])
    return min(lengths)
