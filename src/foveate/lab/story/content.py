"""What a page shows: questions about images, and what became of their tokens under each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from foveate.cost import Report
from foveate.lab.story.telling import Story


@dataclass(frozen=True)
class Told:
    """A method's answer to a question, and how it came about.

    Attributes:
        tokens: visual tokens per decoder layer, flops, kv: over those of the stock model, for the whole call.
    """

    answer: str
    story: Story
    tokens: float
    flops: float
    kv: float

    @classmethod
    def of(cls, answer: str, story: Story, report: Report) -> Told:
        """With the costs of a report."""
        rows = max(story.rows, 1)
        share = report.mean_tokens * rows / max(report.visual_tokens, 1)
        return cls(answer, story, share, report.flops_ratio, report.kv_ratio)


@dataclass(frozen=True)
class Case:
    """A question about an image.

    Attributes:
        name: of the image.
        image: as the model saw it.
        parts: pictures of the tower's grids, where an image is cut into several; else empty.
        prompt, dense: the question, and the stock model's answer.
        truth: the right answer, where it is known.
        told: by the label of a method.
    """

    name: str
    image: Image.Image
    parts: tuple[Image.Image, ...]
    prompt: str
    dense: str
    truth: str | None
    told: Mapping[str, Told]


@dataclass(frozen=True)
class Content:
    """A page.

    Attributes:
        model: its name, family: of it.
        methods: label -> the method with all options, as Python writes it.
        cases: at least one; all of the same methods.
    """

    model: str
    family: str
    methods: Mapping[str, str]
    cases: tuple[Case, ...]
