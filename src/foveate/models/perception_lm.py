"""PerceptionLM: methods act in its Llama."""

from __future__ import annotations

from foveate.models.language_only import language_only

FAMILY = language_only(
    "perception_lm",
    "vision_tower",
    "its vision tower is one of timm's, whose blocks have other names and calls in each of them",
    videos=True,
)
