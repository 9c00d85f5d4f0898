"""What a decoder layer's attention says of visual tokens, in a step in which their prompts come whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.ops.segments import offsets, padded_index, ranges, to_padded
from foveate.runtime.engines import Kind, Pattern, Reading
from foveate.tokens import Tokens


@dataclass
class PagedReading(Reading):
    """The same of an attention without a batch: ``place (N,)`` are the tokens that are asked about among its rows, padded to a
    batch; at first, all of the step."""

    place: Tensor = field(default_factory=lambda: torch.empty(0))

    def now(self, x: Tensor, mean: bool = False) -> Tensor:
        return x.flatten(0, 1)[None, self.place]


@dataclass(frozen=True)
class Packed:
    """Where the visual tokens are in a step: in one row of all requests, without padding.

    Attributes:
        tokens: those present.
        rows: ``(N,)`` where they are among all tokens of the step.
    """

    tokens: Tokens
    rows: Tensor
    unit: int = 1

    def pick(self, x: Tensor) -> Tensor:
        """``(N, C)`` of ``x (T, C)``."""
        return x[self.rows]

    def attended(self, x: Tensor) -> Tensor:
        """Return what a `PagedReading` gives is of visual tokens alone."""
        return x[0]


class StoppedError(Exception):
    """Raised in place of an attention that nobody needs: its queries and keys have been read."""


class Watch:
    """Reads the attention of a layer for some signals, while it is open.

    Args:
        module: the attention layer of vLLM, which is called with queries, keys and values ``(N, H d)`` after their RoPE.
        kinds: of signals.
        lengths: tokens of each request in this step.
        last: which of them is the last one of its prompt.
        ahead: the layer runs for that alone, so it ends there (`StoppedError`), before anything is written into its cache.
    """

    def __init__(
        self, module: Any, kinds: Sequence[Kind], lengths: Sequence[int], last: Sequence[int], ahead: bool = False
    ) -> None:
        self.module, self.kinds, self.lengths, self.last, self.ahead = module, kinds, lengths, last, ahead
        self.reading: PagedReading | None = None

    def __enter__(self) -> Watch:
        self._hook = self.module.register_forward_pre_hook(self._read)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _read(self, module: Any, args: tuple[Tensor, ...]) -> None:
        device, used = args[0].device, [i for i, n in enumerate(self.lengths) if n]
        starts, counts = offsets(self.lengths), [self.lengths[i] for i in used]
        index = ranges([starts[i] for i in used], counts, device)
        query, key, value = (
            to_padded(part[index].view(len(index), -1, module.head_size), counts).transpose(1, 2) for part in args[:3]
        )
        place = torch.zeros(sum(self.lengths), dtype=torch.long, device=device)
        place[index] = padded_index(counts, device)
        reading = PagedReading(width=query.shape[2], place=place)
        slots = torch.tensor([[self.last[i]] for i in used], device=device)
        for kind in self.kinds:
            kind.ask(reading, lambda rows: slots)
        reading.valid = torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]
        reading.note(query, key, value)
        reading.read(query, key, None, Pattern(module.impl.scale, causal=True))
        self.reading = reading
        if self.ahead:
            raise StoppedError


def all_heads(kind: Kind, x: Tensor) -> Tensor:
    """Return a signal ``(n, H, ...)``, or a mean over heads ``(n,)``, of the heads of all processes, which have some each."""
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

    if kind.in_parts == "same" or get_tensor_model_parallel_world_size() == 1:
        return x
    if kind.in_parts == "mean":  # as many heads in each process
        mean: Tensor = tensor_model_parallel_all_gather(x[:, None].contiguous(), dim=1).mean(1)
        return mean
    gathered: Tensor = tensor_model_parallel_all_gather(x.contiguous(), dim=1)
    return gathered
