"""LLaVA with SigLIP: LLaVA with a tower that has no CLS token, such as LLaVA-Interleave. The pooling head that SigLIP may have
makes nothing that the language model sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.errors import UnsupportedModelError
from foveate.models import llava


def _last_block(config: Any) -> int:
    if config.vision_feature_select_strategy == "default":
        raise UnsupportedModelError(
            'vision_feature_select_strategy="default" leaves out the first row of every image, and a SigLIP tower has a patch '
            'there, not a CLS token: set "full" in the model\'s config and in its processor'
        )
    return llava.last_block(config)


FAMILY = replace(
    llava.FAMILY,
    alias="llava_siglip",
    tower_type="siglip_vision_model",
    tower=replace(llava.FAMILY.tower, leading=0, kept_rows=lambda config: 0, last_block=_last_block),
)
