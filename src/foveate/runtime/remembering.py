"""What methods have remembered of images, for the text that comes after them. It lives with the KV cache (`state.States`).

A row of the batch has what was remembered of its images, one after another, and from which place of the full sequence on each
is known: a token of text sees a part of it from the front, so nothing is copied when a cache is cropped or its rows change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.runtime.cache import joined_tokens, of_spans
from foveate.tokens import Spans, Tokens


class Image(NamedTuple):
    """An image, or a whole video, of which something is remembered.

    Attributes:
        place: the first place of the full sequence behind it, from which on it is known.
        sample: which one of its row it belongs to.
        end: how many rows there are up to its last one.
    """

    place: int
    sample: int
    end: int


@dataclass(frozen=True, eq=False)
class Remembered:
    """What is remembered in one row of the batch.

    Attributes:
        rows: ``(R, D)``, image after image; None: there was no image.
        images: in the order of the sequence.
        sample: the last one of the row, which goes on with what comes after the prompt.
    """

    rows: Tensor | None = None
    images: tuple[Image, ...] = ()
    sample: int = 0

    def add(self, rows: Tensor, place: int, sample: int) -> Remembered:
        """With an image that is known from ``place`` on."""
        rows = rows if self.rows is None else torch.cat([self.rows, rows])
        return replace(self, rows=rows, images=(*self.images, Image(place, sample, len(rows))))

    def crop(self, length: int) -> Remembered:
        """As it was when the sequence had ``length`` tokens."""
        images = tuple(image for image in self.images if image.place <= length)
        if len(images) == len(self.images):
            return self
        rows = None if self.rows is None or not images else self.rows[: images[-1].end]
        return replace(self, rows=rows, images=images)

    def of(self, sample: int, known: int) -> Tensor | None:
        """Return what a token of a sample may use when the first ``known`` images of its row have come; None: nothing."""
        before = [image for image in self.images[:known] if image.sample < sample]
        images = [image for image in self.images[:known] if image.sample == sample]
        if self.rows is None or not images:
            return None
        rows = self.rows[before[-1].end if before else 0 : images[-1].end]
        return rows if len(rows) else None


@dataclass(eq=False)
class Memory:
    """What was remembered at one site.

    Attributes:
        method: whose site it is.
        rows: one entry for each row of the batch.
        waiting: tokens of images of which the last one has not come yet, as a prompt may come in chunks; None: there are none.
    """

    method: str
    rows: list[Remembered]
    waiting: Tokens | None = None

    def select(self, rows: Sequence[int]) -> None:
        """The rows of the batch are now these of those before."""
        self.rows = [self.rows[row] for row in rows]

    def crop(self, length: int) -> None:
        """The sequence now has ``length`` tokens, and none of an image that has not ended."""
        self.rows, self.waiting = [row.crop(length) for row in self.rows], None

    def complete(self, tokens: Tokens, ended: Collection[tuple[int, int]]) -> Tokens:
        """The tokens of images that have ``ended``, by row and clip, with what earlier chunks have brought of them.

        Those of others wait for the next chunk.
        """
        here, self.waiting = complete(
            self.waiting, tokens, lambda spans: [key in ended for key in zip(spans.row, spans.clip)]
        )
        return here


def complete(
    waiting: Tokens | None, tokens: Tokens, ended: Callable[[Spans], Sequence[bool]]
) -> tuple[Tokens, Tokens | None]:
    """Return the tokens of spans that have ``ended``, with those of them that were waiting; and those that wait on."""
    given = tokens
    if waiting is not None:
        tokens, _ = joined_tokens(waiting, tokens)
    ends = ended(tokens.spans)
    here, later = ([s for s, end in enumerate(ends) if end is which] for which in (True, False))
    still = _of(tokens, later) if later else None
    return given if tokens is given and not later else _of(tokens, here), still


def _of(tokens: Tokens, chosen: Sequence[int]) -> Tokens:
    """Return the tokens of the ``chosen`` spans."""
    picked, _ = of_spans(tokens, chosen, [tokens.spans.row[s] for s in chosen])
    return replace(picked, seen=(0,) * len(chosen), total=())
