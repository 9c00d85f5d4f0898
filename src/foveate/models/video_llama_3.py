"""VideoLLaMA 3: a factor that comes with each image pools its patches; methods act in its language model."""

from __future__ import annotations

from foveate.models.language_only import language_only

FAMILY = language_only(
    "video_llama_3",
    "vision_model",
    "its vision tower pools the patches of every image by a factor of its own, which comes with the call",
    videos=True,
)
