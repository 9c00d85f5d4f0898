"""The stops of a forward pass, in order, and the one that a site belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foveate.site import Site


@dataclass(frozen=True)
class Step:
    """A stop of the forward pass, and the part of the model that it is in."""

    name: str
    stage: Literal["image", "tower", "language", "cache"]


def steps_of(blocks: int, layers: int) -> tuple[Step, ...]:
    """The stops of a model with that many vision blocks and decoder layers."""
    return (
        Step("Pixels", "image"),
        *(Step(f"Vision block {i}", "tower") for i in range(blocks)),
        Step("Tower output", "tower"),
        Step("Language model entry", "language"),
        *(Step(f"Decoder layer {i}", "language") for i in range(layers)),
        Step("KV cache", "cache"),
    )


def place_of(site: Site, blocks: int) -> int:
    """The number of the step that a site belongs to; -1: the last one."""
    first = {"pixels": 0, "tower": 1, "tower_output": 1 + blocks, "lm_entry": 2 + blocks, "decoder": 3 + blocks}
    return (
        -1
        if site.at in ("decode", "cache")
        else first[site.at] + (site.layer if site.at in ("tower", "decoder") else 0)
    )
