"""LFM2-VL: methods act in its language model, some layers of which have a short convolution in place of attention."""

from __future__ import annotations

from typing import Any

from foveate.models.family import Decoder
from foveate.models.language_only import language_only


def short_convolution(module: Any, tokens: int) -> int:
    """FLOPs of the convolution as stock code computes it: a prompt's runs past its end."""
    kernel = module.conv.kernel_size[0]
    return int(2 * module.conv.weight.numel() * (tokens + (kernel - 1 if tokens > 1 else 1)))


FAMILY = language_only(
    "lfm2_vl",
    "vision_tower",
    "its projector is given the patches of all images side by side, with fillings in between that it drops itself",
    Decoder(
        norm="embedding_norm",
        attention_norm="operator_norm",
        attention_end="out_proj",
        ffn="feed_forward",
        gated=(),
        recurrent="conv",
        recurrence=short_convolution,
    ),
)
