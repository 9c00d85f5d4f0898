"""Qwen3.5: the tower of Qwen3-VL without deepstack, and a hybrid language model. Most of its layers have no attention but a
gated delta rule, which reads the tokens in order into a state. What is removed before such a layer never enters the state; a
decode site hides tokens from layers with attention only. A timestamp stands before every frame of a video."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from foveate.models import qwen2_vl
from foveate.models.family import Decoder

CHUNK = 64  # tokens that stock code takes through the delta rule at once


def delta_rule(module: Any, tokens: int) -> int:
    """FLOPs of the convolution and the delta rule, as stock code computes them without kernels of other packages.

    A prompt is filled up to whole chunks, and its convolution runs past the end. One step alone has no matrix product.
    """
    kernel = module.conv1d.kernel_size[0]
    convolution = 2 * module.conv1d.weight.numel() * (tokens + (kernel - 1 if tokens > 1 else 1))
    if tokens == 1:
        return int(convolution)
    k, v = module.head_k_dim, module.head_v_dim
    within = CHUNK * (3 * k + 2 * v)  # keys with keys and queries, the triangular system, new values with queries
    chunk = 2 * CHUNK * (within + 3 * k * v)  # the state: with queries, with new keys, and what the chunk adds to it
    return int(convolution + math.ceil(tokens / CHUNK) * module.num_v_heads * chunk)


FAMILY = replace(
    qwen2_vl.FAMILY,
    model_type="qwen3_5",
    decoder=Decoder(recurrent="linear_attn", recurrence=delta_rule),
)
