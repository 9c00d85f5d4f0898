"""Questions in batches of one image layout, as a model's processor wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from foveate_reference.data import Sample


#: Visual tokens per batch: larger ones are no faster on a CPU.
TOKENS = 1600
#: What the blind model sees.
GREY = 128


@dataclass(frozen=True, eq=False)
class Batch:
    """Questions that are asked together.

    Attributes:
        samples: all with images of the same number and sizes.
        inputs: what the processor made of them, on the model's device.
        evidence: for every image of the batch, in the order of the prompts: how much of each visual
            token the asked objects cover.
    """

    samples: tuple[Sample, ...]
    inputs: Any
    evidence: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Preparation:
    """How images and questions become inputs.

    Attributes:
        processor: the model's own.
        side: LLaVA's tower takes squares of this many pixels, so larger images are cut; 0: images stay as they are.
        device, dtype: those of the model.
    """

    processor: Any
    side: int
    device: Any
    dtype: Any

    def batch(self, samples: Sequence[Sample], *, blind: bool = False) -> Batch:
        """The inputs of these questions; ``blind`` shows grey images of the same size."""
        from foveate_reference.vocabulary import CELL

        images = [self._cut(sample.images, self.side) for sample in samples]
        evidence = [cells for sample in samples for cells in self._cut(sample.evidence, self.side // CELL)]
        if blind:
            images = [[np.full_like(image, GREY) for image in several] for several in images]
        text = self.processor.apply_chat_template(
            [_chat(len(several), sample.question) for several, sample in zip(images, samples)],
            add_generation_prompt=True,
        )
        flat = [image for several in images for image in several]
        inputs = self.processor(text=text, images=flat, return_tensors="pt", padding=True)
        return Batch(tuple(samples), inputs.to(self.device, self.dtype), tuple(evidence))

    def _cut(self, pictures: Sequence[NDArray[Any]], side: int) -> list[NDArray[Any]]:
        from foveate_reference.model import tiles

        return list(tiles(pictures, side)) if side else list(pictures)


def grouped(samples: Sequence[Sample], tokens: int = TOKENS) -> list[tuple[Sample, ...]]:
    """Questions that can share a batch: equally many images of equal sizes, up to ``tokens`` visual tokens together."""
    layouts: dict[tuple[tuple[int, ...], ...], list[Sample]] = {}
    for sample in samples:
        layouts.setdefault(tuple(cells.shape for cells in sample.evidence), []).append(sample)
    found = []
    for layout, members in layouts.items():
        size = max(1, tokens // sum(height * width for height, width in layout))
        found += [tuple(members[start : start + size]) for start in range(0, len(members), size)]
    return found


def probes(samples: Sequence[Sample], each: int) -> list[tuple[tuple[Sample, ...], float]]:
    """``each`` questions of every layout, and the share of all questions that have it."""
    groups = grouped(samples, tokens=1 << 60)
    return [(group[:each], len(group) / len(samples)) for group in groups]


def _chat(images: int, question: str) -> list[dict[str, Any]]:
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]
