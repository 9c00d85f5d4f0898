"""Qwen3-VL-MoE: Qwen3-VL with a mixture of experts in the decoder."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import qwen3_vl

FAMILY = replace(qwen3_vl.FAMILY, model_type="qwen3_vl_moe")
