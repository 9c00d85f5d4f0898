"""EXAONE 4.5: Qwen2.5-VL's tower, with fewer heads for keys than for queries, and EXAONE 4, whose positions count tokens in one
row and whose norms come after attention and FFN."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import qwen2_5_vl
from foveate.models.family import Decoder

FAMILY = replace(qwen2_5_vl.FAMILY, model_type="exaone4_5", decoder=Decoder(attention_norm=""))
