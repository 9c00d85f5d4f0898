"""FastVLM: a network of convolutions makes its tokens; methods act in its Qwen2."""

from __future__ import annotations

from foveate.models.language_only import language_only

FAMILY = language_only(
    "fast_vlm",
    "vision_tower",
    "it sees through a network of timm with convolutions, which has no blocks of tokens to act in",
)
