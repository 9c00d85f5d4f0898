"""Qwen3-VL-MoE: Qwen3-VL with a mixture of experts in the decoder. A reduced layer routes the tokens that are left, so there
are no router logits of all tokens, nor the load-balancing loss that stock code makes of them."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import qwen3_vl

FAMILY = replace(
    qwen3_vl.FAMILY,
    model_type="qwen3_vl_moe",
    decoder=replace(qwen3_vl.FAMILY.decoder, complete=("router_logits",)),
)
