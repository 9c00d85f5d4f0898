"""ViP-LLaVA: LLaVA whose features are made of the rows of several blocks. Sites in the tower end at the first of them."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import llava

FAMILY = replace(llava.FAMILY, model_type="vipllava", tower=replace(llava.FAMILY.tower, kept_rows=lambda config: 0))
