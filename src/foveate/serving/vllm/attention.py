"""What a decoder layer's attention says of visual tokens, in a step in which their prompts come whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.ops.segments import offsets, padded_index, ranges, to_padded
from foveate.runtime.signals import Pattern, attention, received

#: signals that depend on what comes after an image, so prompts must come in one piece
OF_THE_WHOLE = ("last_row", "received")
KNOWN = ("keys", "values", *OF_THE_WHOLE)


@dataclass
class Seen:
    """Queries ``(N, H d)``, keys and values ``(N, G d)`` of one layer in one step, after its rotary embeddings."""

    query: Tensor
    key: Tensor
    value: Tensor


class Watch:
    """Keeps what the attention of a layer is called with, while it is open."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.seen: Seen | None = None

    def __enter__(self) -> Watch:
        self._hook = self.module.register_forward_pre_hook(self._keep)
        return self

    def _keep(self, module: Any, args: tuple[Tensor, ...]) -> None:
        self.seen = Seen(*args[:3])

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def signal(name: str, module: Any, seen: Seen, lengths: Sequence[int], last: Sequence[int], rows: Tensor) -> Tensor:
    """A signal of the visual tokens at ``rows (n,)`` of the step.

    Args:
        name: of the signal.
        module: the attention layer of vLLM that ``seen`` is of.
        lengths: tokens of each request in this step.
        last: which of them is the last one of its prompt.

    Returns:
        ``(n, G, d)`` keys or values, ``(n, H)`` the last token's attention, ``(n,)`` attention received.
    """
    if name in ("keys", "values"):
        part = seen.key if name == "keys" else seen.value
        return part[rows].view(len(rows), -1, module.head_size)
    used = [i for i, n in enumerate(lengths) if n]
    starts, counts = offsets(lengths), [lengths[i] for i in used]
    index = ranges([starts[i] for i in used], counts, rows.device)
    query, key = (
        to_padded(part[index].view(len(index), -1, module.head_size), counts).transpose(1, 2)
        for part in (seen.query, seen.key)
    )
    how = Pattern(module.impl.scale, causal=True)
    place = torch.zeros(sum(lengths), dtype=torch.long, device=rows.device)
    place[index] = padded_index(counts, rows.device)
    if name == "last_row":
        slots = torch.tensor([[last[i]] for i in used], device=rows.device)
        found = attention(query, key, None, how, slots)[:, :, 0].transpose(1, 2)  # (B, W, H)
        return all_heads(name, found.flatten(0, 1)[place[rows]])
    valid = torch.arange(max(counts), device=rows.device) < torch.tensor(counts, device=rows.device)[:, None]
    return all_heads(name, received(query, key, None, how, valid).flatten()[place[rows]])


def all_heads(name: str, x: Tensor) -> Tensor:
    """A signal ``(n, H, ...)``, or of attention received ``(n,)``, of the heads of all processes, which have some each."""
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

    if name == "residual" or get_tensor_model_parallel_world_size() == 1:
        return x
    if name == "received":  # a mean over heads, as many in each process
        mean: Tensor = tensor_model_parallel_all_gather(x[:, None].contiguous(), dim=1).mean(1)
        return mean
    gathered: Tensor = tensor_model_parallel_all_gather(x.contiguous(), dim=1)
    return gathered
