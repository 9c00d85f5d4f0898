"""Emu3: images become words of a code book; methods act in its language model."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import language_only
from foveate.models.refused import WORDS

FAMILY = language_only("emu3", "vqmodel", WORDS, Decoder(module="text_model"))
