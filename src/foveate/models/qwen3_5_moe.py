"""Qwen3.5-MoE: Qwen3.5 with a mixture of experts in the decoder. As in Qwen3-VL-MoE, a reduced layer has no router logits of
all tokens."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import qwen3_5

FAMILY = replace(
    qwen3_5.FAMILY,
    model_type="qwen3_5_moe",
    decoder=replace(qwen3_5.FAMILY.decoder, complete=("router_logits",)),
)
