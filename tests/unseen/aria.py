"""Aria: how many queries look at an image is written for each number of patches."""

from __future__ import annotations

from typing import Any

from foveate.lab.inspection import tiny as shrinking


def config() -> Any:
    made = shrinking.config_of("aria")
    made.projector_patch_to_query_dict = {64: 8}
    return made
