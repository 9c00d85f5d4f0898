"""Step 3.7: convolutions make its tokens; methods act in its language model, which has experts, and layers that slide."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import language_only

FAMILY = language_only(
    "step3p7",
    "vision_model",
    "convolutions of overlapping patches make its tokens, so no patch belongs to one token alone",
    Decoder(kinds="layer_types", complete=("router_logits",)),
)
