"""VideoLLaMA 3: a factor that comes with each image pools its patches; methods act in its language model."""

from __future__ import annotations

from dataclasses import replace

from foveate.models.language_only import language_only

FAMILY = replace(
    language_only(
        "video_llama_3",
        "vision_model",
        "its vision tower pools the patches of every image by a factor of its own, which comes with the call",
    ),
    modalities={"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"},
)
