"""Prompts of about so many visual tokens: for a shape from its config alone, for a real model through its processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.errors import first_line
from foveate.lab.bench.memory import available
from foveate.lab.terminal import CommandError
from foveate.models import family_of

TEXT = 32  # words of a prompt
SMALLEST, LARGEST = 56, 3584  # pixels: sides of the images that a processor is shown, doubled from one to the other
QUESTION = "Describe what you see, from left to right and from top to bottom, and count what is there."


@dataclass(frozen=True)
class Layout:
    """How a prompt comes to its visual tokens.

    Attributes:
        tokens: visual tokens of a row.
        images: of a row.
        size: ``(height, width)`` of each: in tokens for a shape, in pixels for a real model.
    """

    tokens: int
    images: int
    size: tuple[int, int]


class Shaped:
    """Prompts for a model of which only the config is known."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.side = _tile(config)

    def layout(self, tokens: int) -> Layout:
        """A single image of any size where the tower takes that, else so many tiles."""
        if self.side:
            images = max(1, round(tokens / self.side**2))
            return Layout(images * self.side**2, images, (self.side, self.side))
        height = max(1, int(tokens**0.5))
        width = max(1, round(tokens / height))
        return Layout(height * width, 1, (height, width))

    def inputs(self, layout: Layout, batch: int, seed: int) -> dict[str, Tensor]:
        """Random pixels, and as many placeholders, between words."""
        image, (height, width) = self.config.image_token_id, layout.size
        run = [image] * (height * width)
        if not self.side:
            run = [self.config.vision_start_token_id, *run, self.config.vision_end_token_id]
        row = [20] * (TEXT // 2) + run * layout.images + [21] * (TEXT - TEXT // 2)
        ids = torch.tensor([row] * batch)
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        generator, count = torch.Generator().manual_seed(seed), batch * layout.images
        if self.side:
            pixels = _pair(self.config.vision_config.image_size)
            return made | {"pixel_values": torch.randn(count, 3, *pixels, generator=generator)}
        vision = self.config.vision_config
        merge, channels = vision.spatial_merge_size, 3 * vision.temporal_patch_size * vision.patch_size**2
        patches = torch.randn(count * merge**2 * height * width, channels, generator=generator)
        grid = torch.tensor([[1, merge * height, merge * width]] * count)
        return made | {"mm_token_type_ids": (ids == image).long(), "pixel_values": patches, "image_grid_thw": grid}


class Processed:
    """Prompts for a real model: noise of the right size, and a question in its chat format."""

    def __init__(self, name: str, config: Any, processor: Any) -> None:
        if not getattr(processor, "chat_template", None):
            raise CommandError(
                f"the processor of {name!r} has no chat template, so a prompt cannot be put in its format"
            )
        self.name, self.processor = name, processor
        self.placeholder = int(getattr(config, family_of(config).modalities["pixel_values"]))
        self._count: Callable[[int], int] = lru_cache(None)(lambda side: self._tokens(1, side))

    def layout(self, tokens: int) -> Layout:
        """The square image that comes nearest; where the largest is not enough, several of those that give most."""
        high = SMALLEST
        while self._count(high) < tokens and high < LARGEST and self._grows(high):
            high *= 2
        low = high // 2
        while high - low > 7:  # sides that matter are some patches apart
            middle = (low + high) // 2
            low, high = (middle, high) if self._count(middle) < tokens else (low, middle)
        side = min((low, high), key=lambda side: abs(self._count(side) - tokens))
        images = max(1, round(tokens / max(self._count(side), 1)))
        pixels, free = images * 3 * side**2 * torch.float32.itemsize, available(torch.device("cpu"))
        if free is not None and pixels > free:
            raise CommandError(f"--tokens {tokens}: the pixels of {images:,} images do not fit into memory: give fewer")
        return Layout(self._tokens(images, side), images, (side, side))

    def inputs(self, layout: Layout, batch: int, seed: int) -> dict[str, Tensor]:
        """Images of noise, the same number and size for every row, and the question."""
        noise = np.random.default_rng(seed)
        sizes = [(*layout.size, 3)] * (batch * layout.images)
        pictures = [Image.fromarray(noise.integers(0, 256, size, dtype=np.uint8)) for size in sizes]
        rows = [pictures[start : start + layout.images] for start in range(0, len(pictures), layout.images)]
        return dict(self._prepare(rows))

    def _grows(self, side: int) -> bool:
        """Whether a larger image than this gives more tokens; small ones may all be made larger first."""
        return side < 448 or self._count(2 * side) > self._count(side)

    def _tokens(self, images: int, side: int) -> int:
        made = self._prepare([[Image.new("RGB", (side, side))] * images])
        return int((made["input_ids"] == self.placeholder).sum())

    def _prepare(self, rows: list[list[Image.Image]]) -> Any:
        chats = [
            [{"role": "user", "content": [*({"type": "image"} for _ in row), {"type": "text", "text": QUESTION}]}]
            for row in rows
        ]
        try:
            text = self.processor.apply_chat_template(chats, add_generation_prompt=True)
            pictures = [picture for row in rows for picture in row]
            return self.processor(text=text, images=pictures, return_tensors="pt")
        except ValueError as error:
            raise CommandError(f"the processor of {self.name!r} refuses the input: {first_line(error)}") from None


def _tile(config: Any) -> int:
    """Tokens along the side of an image of the one size that the tower takes; 0: it takes any."""
    if config.model_type not in ("llava", "internvl"):
        return 0
    patch, ratio = _pair(config.vision_config.patch_size)[0], getattr(config, "downsample_ratio", 1)
    return int(_pair(config.vision_config.image_size)[0] / patch * ratio)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
