"""What a model is called with: the inputs of one forward, and the prompt that they are a part of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.runtime.samples import Samples
from foveate.runtime.signals.reading import Reading


@dataclass
class Inputs:
    """What the base model was called with, for the language model's hooks to find the placeholders."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    modalities: tuple[str, ...]  # pixel arguments whose features this forward brings
    mask: Any = None  # as the caller gave it, of whatever shape
    places: dict[str, Tensor] = field(default_factory=dict)  # ``(B, L)`` bool, where features are in place already


@dataclass
class Ending:
    """What a forward means to the prompt that it is a part of.

    Attributes:
        here: whether a prompt with images ends with it, so that cache sites act.
        spans: numbers of the spans that this prompt has brought.
        readings: layer -> what is read from its attention for cache sites.
        mask: ``(B, past + L)`` which tokens of the full sequence are no padding, if the caller says so.
    """

    here: bool = False
    spans: frozenset[int] = frozenset()
    readings: dict[int, Reading] = field(default_factory=dict)
    mask: Tensor | None = None


@dataclass
class Denoised:
    """How far the answer to a prompt has come that is written in steps which read the cache.

    Attributes:
        ending: what the prompt was; its readings are those of the last step.
        samples: that are packed into its rows, or None.
        done: steps of this part of the answer that have run.
        acted: sites, by `Action.order`, whose step has come.
    """

    ending: Ending
    samples: Samples | None
    done: int = 0
    acted: set[int] = field(default_factory=set)

    def select(self, rows: Tensor) -> None:
        """Follow a cache whose rows are now ``rows (B',)`` of those before. What the last step looked at is forgotten."""
        mask = self.ending.mask
        self.ending.mask = None if mask is None else mask.index_select(0, rows.to(mask.device))
        self.ending.readings.clear()


@dataclass
class Prompt:
    """A call of ``generate()``, or of the base model alone, which encodes images for itself.

    Attributes:
        alone: it is a call of the base model.
        places: ``(B, L)`` bool for each pixel argument, where the caller has put features into ``inputs_embeds``.
        done: columns of them that forwards have brought so far (chunked prefill).
        ids: ``(B, L)`` token ids of the whole of it, or None.
        total: length of the full sequence when all of it is there.
        spans: numbers of the spans that forwards have brought so far.
        step: denoising steps that have begun, in a model that runs all of the prompt in each of them.
        gone: ``(cells,)`` bool, what of its images has left at a step; None: nothing.
    """

    alone: bool
    total: int = 0
    places: dict[str, Tensor] = field(default_factory=dict)
    done: int = 0
    ids: Tensor | None = None
    spans: frozenset[int] = frozenset()
    step: int = 0
    gone: Tensor | None = None
    _with_images: list[bool] | None = field(default=None, repr=False)

    def take(self, batch: int, length: int) -> dict[str, Tensor]:
        """Return what the next ``length`` columns bring, each row repeated for its beams."""
        columns = slice(self.done, self.done + length)
        self.done += length
        taken = {pixels: place[:, columns] for pixels, place in self.places.items()}
        taken = {pixels: place for pixels, place in taken.items() if place.shape[1] == length}
        return {pixels: place.repeat_interleave(batch // len(place), 0) for pixels, place in taken.items()}

    def with_images(self, batch: int, tokens: Collection[int]) -> tuple[bool, ...]:
        """Say which rows of the batch have an image somewhere, or a placeholder among ``tokens``. This asks the device once."""
        if self._with_images is None:
            found = [place.any(1).cpu() for place in self.places.values()]
            if self.ids is not None:
                known = torch.tensor(list(tokens), device=self.ids.device)
                found.append(torch.isin(self.ids, known).any(1).cpu())
            self._with_images = torch.stack(found).any(0).tolist() if found else []
        rows = self._with_images
        return tuple(row for row in rows for _ in range(batch // len(rows))) if rows else (False,) * batch
