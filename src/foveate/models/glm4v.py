"""GLM-4.1V, and GLM-OCR: like Qwen2-VL, with a convolution over the four patches of a token before the merger, and in GLM-4.1V
learned position embeddings in the tower. A timestamp stands before every frame of a video, and every frame reaches the tower as
an image of its own, so frames of one video are clips of their own, too. Placeholders of images and videos look alike; stock
code takes one of the two modalities in a prompt."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import qwen2_vl
from foveate.models.family import NOWHERE

ALSO = ("glm_ocr",)
FAMILY = replace(
    qwen2_vl.FAMILY,
    model_type="glm4v",
    modalities={"pixel_values": "image_token_id", "pixel_values_videos": "image_token_id"},
    tower=replace(qwen2_vl.FAMILY.tower, neck=("visual.post_layernorm", "visual.downsample")),
    frames=NOWHERE,
)
