"""The FFN of a decoder layer on fewer rows, or on fewer channels.

The module sees the rows that go through all of it; what it makes of them goes back among zeros, which the norm after it (where
there is one) and the residual addition of stock code leave as zeros. Rows that use some channels only are computed here, from
a copy of these weights, and put back in the same way.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foveate.models.family import Decoder, Gated
from foveate.runtime.parking import is_plain


class GatedFfn:
    """The layers of a gated FFN: ``down(act(gate(x)) * up(x))``. `find` says whether a module is one."""

    def __init__(self, module: nn.Module, names: Gated) -> None:
        self.gate: Any = getattr(module, names.gate)
        self.up: Any = getattr(module, names.up) if names.up else None
        self.down: Any = getattr(module, names.down)
        self.act: Any = getattr(module, names.activation)
        self._copied: Copied | None = None

    @classmethod
    def find(cls, module: nn.Module, spec: Decoder) -> GatedFfn | None:
        """Return the layers of ``module``, if it is a gated FFN of plain linear layers."""
        for names in spec.gated:
            layers = [getattr(module, name, None) for name in (names.gate, names.up, names.down) if name]
            if hasattr(module, names.activation) and all(layer is not None and is_plain(layer) for layer in layers):
                return cls(module, names)
        return None

    @property
    def channels(self) -> int:
        """How many there are."""
        return int(self.down.in_features)

    def activations(self, x: Tensor) -> Tensor:
        """``(M, channels)``, what the down projection sees of rows ``(M, C)``."""
        if self.up is not None:
            return self.act(self.gate(x)) * self.up(x)  # type: ignore[no-any-return]
        gate, up = self.gate(x).chunk(2, dim=-1)
        return self.act(gate) * up  # type: ignore[no-any-return]

    def partly(self, x: Tensor, index: Tensor, row: int | None) -> Tensor:
        """What the FFN makes of ``x (M, C)`` with the channels ``index (K,)`` alone, or those of a ``row`` of ``(G, K)``."""
        (gate, up, down), chosen = self._weights(index, row), (index if row is None else index[row]).to(x.device)
        bias: Any = self.gate.bias if self.up is None else self.up.bias
        gate_bias = None if self.gate.bias is None else self.gate.bias[chosen]
        up_bias = None if bias is None else bias[chosen + self._shift]
        linear = nn.functional.linear
        return linear(self.act(linear(x, gate, gate_bias)) * linear(x, up, up_bias), down, self.down.bias)

    @property
    def _shift(self) -> int:
        """Where ``up`` begins in the layer that makes it."""
        return self.channels if self.up is None else 0

    def _weights(self, index: Tensor, row: int | None) -> tuple[Tensor, ...]:
        """Copies of the weights of some channels: those of the last call, if neither the channels nor the weights changed."""
        gate, up, down = self.gate.weight, (self.gate if self.up is None else self.up).weight, self.down.weight
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in (gate, up, down))
        versions = _versions([index, gate, up, down])
        known = self._copied
        if known is None or known.index() is not index or known.versions != versions or learns or not versions:
            known = Copied(weakref.ref(index, self._forget), versions)
            self._copied = None if learns or not versions else known
        if row not in known.weights:
            chosen = (index if row is None else index[row]).to(gate.device)
            upper = up.index_select(0, chosen + self._shift)
            known.weights[row] = gate.index_select(0, chosen), upper, down.index_select(1, chosen)
        return known.weights[row]

    def _forget(self, index: weakref.ref[Tensor]) -> None:
        if self._copied is not None and self._copied.index is index:
            self._copied = None


@dataclass(eq=False)
class Copied:
    """Weights of the channels ``index``, by row of it, and the versions of the tensors that they were copied from."""

    index: weakref.ref[Tensor]
    versions: tuple[Any, ...]
    weights: dict[int | None, tuple[Tensor, ...]] = field(default_factory=dict)


def _versions(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what changes when one of them is written to or replaced; () where torch does not tell (inference mode)."""
    if any(tensor.is_inference() for tensor in tensors):
        return ()
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of a layer, ``shape (B, P, C)``, by what its FFN does with them; all others get zeros.

    Attributes:
        whole: ``(M,)`` places of those that the module sees.
        partly, made: ``(V,)`` places of those that use some channels only, and what these made of them ``(V, C)``.
    """

    shape: torch.Size
    whole: Tensor
    partly: Tensor | None = None
    made: Tensor | None = None

    def join(self, output: Any) -> Any:
        """Give the output of the module for its rows as that of all rows. (Experts may give their router's logits with it.)"""
        made: Tensor = output[0] if isinstance(output, tuple) else output
        rows = made.new_zeros(self.shape[:-1].numel(), made.shape[-1])
        rows.index_copy_(0, self.whole.to(made.device), made.flatten(0, -2))
        if self.partly is not None and self.made is not None:
            rows.index_copy_(0, self.partly.to(made.device), self.made.to(rows))
        joined = rows.view(*self.shape[:-1], -1)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined
