"""Gemma 4 without a tower: patches go straight to the language model, where methods act."""

from __future__ import annotations

from foveate.models import gemma4
from foveate.models.language_only import language_only
from foveate.models.refused import NO_TOWER

FAMILY = language_only("gemma4_unified", "embed_vision", NO_TOWER, gemma4.FAMILY.decoder)
