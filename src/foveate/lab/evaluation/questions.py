"""What is asked: images with a prompt, from a file, from words, or the reference benchmark's, which knows the answer, too."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from PIL import Image

from foveate.lab import records
from foveate.lab.chats import Chat
from foveate.lab.checks import check_images_and_prompts
from foveate.lab.evaluation.request import Questions
from foveate.lab.prompting import open_image
from foveate.lab.speech import Speech
from foveate.lab.terminal import CommandError

if TYPE_CHECKING:
    from foveate_reference.data import Sample

#: What the blind model sees.
GREY = (128, 128, 128)


@dataclass(frozen=True, eq=False)
class Prompt:
    """Images and what is asked about them.

    Attributes:
        id: unique in a run.
        images: files, read when they are needed, or pictures.
        text: the question.
        sizes: ``(width, height)`` of every image.
        digest: SHA-256 of text and images.
        seen: SHA-256 of the images alone: prompts that show the same have the same.
        sample: of the reference benchmark, if it is from there.
        evidence: and how much of each token of every image the asked objects cover.
    """

    id: str
    images: tuple[Path | Image.Image, ...]
    text: str
    sizes: tuple[tuple[int, int], ...]
    digest: str
    seen: str
    sample: Sample | None = None
    evidence: tuple[NDArray[Any], ...] = ()

    def opened(self) -> list[Image.Image]:
        """The images in RGB."""
        return [open_image(image) if isinstance(image, Path) else image for image in self.images]

    def chat(self, blind: bool = False) -> Chat:
        """As a model is asked; ``blind`` shows grey images of the same size."""
        images = [Image.new("RGB", size, GREY) for size in self.sizes] if blind else self.opened()
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": self.text}]
        return Chat([{"role": "user", "content": content}], name=self.id)


def from_file(path: Path) -> list[Prompt]:
    """One prompt a line: ``{"image": "cat.jpg", "prompt": "What is it?"}``, or ``images``, a list.

    Paths are relative to the file. An ``id`` may name it; else its line does.
    Every image is read once, so that a broken one is found before a long run.

    Raises:
        CommandError: all that is wrong, with the numbers of the lines.
    """

    def made(number: int, line: str) -> Prompt:
        asked = records.question(number, line, path.parent)
        return _prompt(asked.id, asked.images, asked.text)

    return records.each(path, made)


def from_words(images: Sequence[Path], texts: Sequence[str]) -> list[Prompt]:
    """A prompt for each image, one for all of them, or several about one image."""
    if not images or not texts:
        missing = "--prompt, what to ask" if images else "--image, what it is about"
        raise CommandError(f"an image and a prompt belong together: add {missing}")
    check_images_and_prompts(images, texts)
    count = max(len(images), len(texts))
    asked = zip(list(images) * (count // len(images)), list(texts) * (count // len(texts)))
    return [_prompt(str(number), (image,), text) for number, (image, text) in enumerate(asked, start=1)]


def of_benchmark(samples: Sequence[Sample], side: int) -> list[Prompt]:
    """Questions of the reference benchmark; ``side``: of the images that the model's tower takes, 0: any. The benchmark cuts
    its images for a tower that takes its squares, and leaves them whole for others."""
    from foveate_reference.model import tiles
    from foveate_reference.vocabulary import CELL, SIZE

    found = []
    for sample in samples:
        pixels, evidence = sample.images, sample.evidence
        if side == SIZE:
            pixels, evidence = tuple(tiles(pixels, side)), tuple(tiles(evidence, side // CELL))  # type: ignore[arg-type]
        found.append(_prompt(sample.id, tuple(map(Image.fromarray, pixels)), sample.question, sample, evidence))
    return found


def samples_of(request: Questions, seed: int, speech: Speech) -> list[Sample]:
    """What is asked of the benchmark, in the words that a model is asked in."""
    from foveate_reference import TASKS, samples

    try:
        found = samples(request.split, tasks=request.tasks or TASKS, per_task=request.per_task, seed=seed)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return [speech.sample(sample) for sample in found]


def check_questions(request: Questions) -> None:
    """Raise `CommandError` for questions that the benchmark has not, of any seed, before anything is loaded."""
    from foveate_reference import TASKS, samples

    for seed in request.seeds:
        try:
            samples(request.split, tasks=(request.tasks or TASKS)[:1], per_task=1, seed=seed)
        except ValueError as error:
            raise CommandError(str(error)) from None


def drawn(prompts: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """So many of them (None: all), in an order that the seed decides."""
    order = random.Random(seed).sample(range(len(prompts)), len(prompts))
    return [prompts[i] for i in order[:count]]


def layouts(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Those with images of the same number and sizes together."""
    found: dict[tuple[tuple[int, int], ...], list[Prompt]] = {}
    for prompt in prompts:
        found.setdefault(prompt.sizes, []).append(prompt)
    return list(found.values())


def grouped(prompts: Sequence[Prompt], size: int) -> list[tuple[Prompt, ...]]:
    """Batches of at most ``size``; those with images of the same sizes are together, so that there is little to pad."""
    alike = sorted(prompts, key=lambda prompt: (prompt.sizes, len(prompt.text.split()), prompt.id))
    return [tuple(alike[start : start + size]) for start in range(0, len(alike), size)]


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of all questions, their pixels, and the answers that are known."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(f"{prompt.id} {prompt.digest} {prompt.sample.answer if prompt.sample else ''}".encode())
    return found.hexdigest()


def _prompt(
    name: str,
    images: tuple[Path | Image.Image, ...],
    text: str,
    sample: Sample | None = None,
    evidence: tuple[NDArray[Any], ...] = (),
) -> Prompt:
    if not text.strip():
        raise CommandError("the prompt is empty: ask something, e.g. 'What is in the image?'")
    found, seen, sizes = hashlib.sha256(text.encode()), hashlib.sha256(), []
    for image in images:
        opened = open_image(image) if isinstance(image, Path) else image
        sizes.append(opened.size)
        pixels = repr(opened.size).encode() + opened.tobytes()
        found.update(pixels)
        seen.update(pixels)
    return Prompt(name, images, text, tuple(sizes), found.hexdigest(), seen.hexdigest(), sample, evidence)
