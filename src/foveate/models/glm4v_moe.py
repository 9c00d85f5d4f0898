"""GLM-4.5V: GLM-4.1V with a mixture of experts in the decoder. As in Qwen3-VL-MoE, a reduced layer has no router logits of all
tokens. Unlike in GLM-4.1V, its layers are given position ids of all axes."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import glm4v
from foveate.models.family import Decoder

FAMILY = replace(glm4v.FAMILY, model_type="glm4v_moe", decoder=Decoder(all_axes=True, complete=("router_logits",)))
