"""GLM-4.5V: GLM-4.1V with a mixture of experts in the decoder. As in Qwen3-VL-MoE, a reduced layer has no router logits of all
tokens."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import glm4v
from foveate.models.family import Decoder

FAMILY = replace(glm4v.FAMILY, model_type="glm4v_moe", decoder=Decoder(complete=("router_logits",)))
