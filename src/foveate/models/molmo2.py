"""Molmo 2: a layer of attention pools patches; methods act in its language model, where an image sees all of itself.

Some layers scale rotary embeddings, others do not."""

from __future__ import annotations

from typing import Any

from foveate.models.family import Decoder
from foveate.models.language_only import language_only


def _rotary(config: Any, layer: int) -> str:
    return "rotary_emb" if layer in config.rope_scaling_layers else "rotary_emb_unscaled"


FAMILY = language_only(
    "molmo2",
    "vision_tower",
    "a layer of attention pools patches out of the features of several blocks of its vision tower at once",
    Decoder(rotary_of=_rotary),
    videos=True,
)
