"""vLLM's vision tower under the hooks of the runtime.

The runtime knows the towers of transformers. Of these, a skeleton without weights is made, and in the place of every module
with weights stands vLLM's own: its linear layers (tensor-parallel, quantised), its norms, its attention kernels. So a tower
runs on vLLM's parts, in the order of transformers' code, where every method finds what it finds there.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.v1.attention.backends.registry import AttentionBackendEnum

#: Names of the attention functions below. A packed tower calls one that reads "flash" once, the other segment by segment.
SEGMENTS, WHOLE = "vllm_flash_segments", "vllm_whole"


class Part(nn.Module):
    """A module of vLLM where stock code has one that gives a tensor alone (linear layers give their bias, too)."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    @property
    def weight(self) -> Tensor:
        """Stock code asks for its dtype."""
        weight: Tensor = self.part.weight
        return weight

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.part(*args, **kwargs)
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first


class AllHeads(nn.Module):
    """A norm of vLLM of queries or keys of all heads at once, where a process may have some of them.

    Args:
        norm: the norm.
        attention: with ``tp_size`` and ``tp_rank``.
    """

    def __init__(self, norm: Any, attention: Any) -> None:
        super().__init__()
        self.norm, self.size, self.rank = norm, attention.tp_size, attention.tp_rank

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        whole = x if self.size == 1 else tensor_model_parallel_all_gather(x)
        mine: Tensor = self.norm(whole).chunk(self.size, dim=-1)[self.rank]
        return mine


def unfused(layer: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a layer of vLLM that makes queries, keys and values, as three layers, called in this order.

    It runs once for all of them. Where the queries are of fewer rows than keys and values (tokens that are parked), it runs on
    either.
    """
    shared = _Fused(layer)
    return tuple(_Share(shared, i) for i in range(3))  # type: ignore[return-value]


class _Fused:
    """What the three have in common: the last rows, and what the layer has made of them."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.rows: Tensor | None = None
        self.made: tuple[Tensor, ...] = ()

    def __call__(self, rows: Tensor, share: int) -> Tensor:
        if self.rows is not rows:
            self.rows, self.made = rows, self.layer(rows)[0].chunk(3, dim=-1)
        mine = self.made[share]
        if share == 2:  # the last one
            self.rows, self.made = None, ()
        return mine


class _Share(nn.Module):
    def __init__(self, fused: _Fused, share: int) -> None:
        super().__init__()
        self.fused, self.share = fused, share

    def forward(self, rows: Tensor) -> Tensor:
        return self.fused(rows, self.share)


def skeleton(cls: Any, config: Any) -> Any:
    """Return a model of transformers without weights and with a language model of one layer, which nobody runs.

    Args:
        cls: its base class.
        config: of the whole model, in the form that ``cls`` takes; not changed.
    """
    config = copy.deepcopy(config)
    config.get_text_config().num_hidden_layers = 1
    config.get_text_config().layer_types = ["full_attention"]
    with torch.device("meta"):
        base = cls(config)
    return base.eval()


def settle(base: Any, device: torch.device) -> None:
    """Give the buffers of a skeleton (frequencies of rotary embeddings, position ids) their values, on ``device``."""
    for module in base.modules():
        own = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        for name in own:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if own:
            base._init_weights(module)


def attention_name(kernel: Any) -> str:
    """Tell which of them a packed tower uses. SDPA goes by segments in vLLM as well, and can weigh merged tokens."""
    return WHOLE if kernel.attn_backend == AttentionBackendEnum.TORCH_SDPA else SEGMENTS


def attend(kernel: Any, query: Tensor, key: Tensor, value: Tensor, **segments: Any) -> Tensor:
    """``(B, Q, H, d)`` of ``(B, H, Q, d)`` by a kernel of vLLM."""
    query, key, value = (x.transpose(1, 2).contiguous() for x in (query, key, value))
    out: Tensor = kernel(query=query, key=key, value=value, **segments)
    return out.view(query.shape)


def _segments(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention within segments: ``cu_seq_lens_q`` (and ``_k``) of a packed tower."""
    ends, kernel = kwargs["cu_seq_lens_q"], module.kernel
    if query.shape[2] != key.shape[2]:
        return _own_queries(query, key, value, ends, kwargs["cu_seq_lens_k"], kernel.scale), None
    longest = kernel.compute_max_seqlen(kernel.attn_backend, ends.cpu().numpy())
    return attend(kernel, query, key, value, cu_seqlens=ends, max_seqlen=torch.tensor(longest, dtype=torch.int32)), None


def _own_queries(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor, scale: float) -> Tensor:
    """The same where some keys have no query (tokens that are parked)."""
    lengths, key_lengths = (each.diff().tolist() for each in (ends, key_ends))
    parts = zip(query.split(lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2))
    sdpa = nn.functional.scaled_dot_product_attention
    return torch.cat([sdpa(q, k, v, scale=scale) for q, k, v in parts], dim=2).transpose(1, 2)


def _whole(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention in a padded tower. vLLM's kernels take neither a mask nor fewer queries than keys."""
    if attention_mask is None and query.shape == key.shape:
        return attend(module.kernel, query, key, value), None
    sdpa = nn.functional.scaled_dot_product_attention
    return sdpa(query, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling")).transpose(1, 2), None


AttentionInterface.register(SEGMENTS, _segments)
AttentionInterface.register(WHOLE, _whole)
