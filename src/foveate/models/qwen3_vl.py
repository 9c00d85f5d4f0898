"""Qwen3-VL: like Qwen2-VL, with learned position embeddings in the tower, features of several blocks added to the first
decoder layers (deepstack), interleaved M-RoPE, and a timestamp before every frame of a video. What is added to a token is its
own: one that stands for several has what it had itself where that was read, before or after they became one."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import qwen2_vl
from foveate.models.family import Decoder

ALSO = ("cosmos3_omni",)
FAMILY = replace(
    qwen2_vl.FAMILY,
    model_type="qwen3_vl",
    tower=replace(
        qwen2_vl.FAMILY.tower,
        taps="visual.deepstack_merger_list",
        features=("pooler_output", "deepstack_features"),
    ),
    decoder=Decoder(deepstack=("deepstack_visual_embeds", "visual_pos_masks")),
)
