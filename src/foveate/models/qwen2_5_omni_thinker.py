"""The thinker of Qwen2.5-Omni: like Qwen2.5-VL, with an ear. Sound has placeholders and features of its own, which are like
text to a method: nothing drops them. Where the sound of a video stands between its frames, frames are spans all the same. Of a
whole Qwen2.5-Omni, compress ``model.thinker``."""

from __future__ import annotations

from dataclasses import replace

from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as stock

from foveate.models import qwen2_5_vl
from foveate.models.family import Decoder

# In older transformers the model with the head joins vision and text itself.
NESTED = hasattr(stock, "Qwen2_5OmniThinkerModel")

FAMILY = replace(
    qwen2_5_vl.FAMILY,
    model_type="qwen2_5_omni_thinker",
    base="model" if NESTED else "",
    decoder=Decoder() if NESTED else Decoder(module="model"),
    tower=replace(qwen2_5_vl.FAMILY.tower, query="q", fused=False),
)
