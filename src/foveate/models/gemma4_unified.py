"""Gemma 4 without a vision tower: a linear layer makes a token of a patch; methods act in its language model."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import gemma4
from foveate.models.family import Decoder
from foveate.models.language_only import language_only

FAMILY = language_only(
    "gemma4_unified",
    "embed_vision",
    "it has no vision tower: patches go straight to the language model",
    replace(gemma4.FAMILY.decoder, layer_args={**Decoder().layer_args, "labels": -1}, experts="", complete=()),
    videos=True,
)
