"""SmolVLM: Idefics3 with another processor. Frames of a video reach the tower as images, each with a timestamp before it, so
frames of one video are clips of their own."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import idefics3

FAMILY = replace(idefics3.FAMILY, model_type="smolvlm")
