"""Benchmarks made of exhibits: single questions with their images, in chat format, as a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .exhibits import EXHIBITS, KIND_OF, Exhibit, make_exhibit
from .scenes import SPLITS, Question, split_seed
from .vocabulary import CHOICES, TASKS

if TYPE_CHECKING:
    from datasets import Dataset

SEEDS = 16
"""Benchmarks with seeds 0 to 15 share no image."""
_EXHIBITS_PER_SEED = SPLITS["test"][1] // SEEDS


@dataclass(frozen=True, eq=False)
class Sample:
    """One question with its images.

    Attributes
    ----------
    id : str
        Task, split and number, such as ``"color/test/17"``.
    task : str
        A word of `TASKS`.
    images : tuple of uint8 (H, W, 3)
        One image of 160 x 160 px; for documents of 320 x 320; two for *pair*; four frames for *move* and *appear*.
    question : str
        Four words, ending with ``?``.
    answer : str
        One word of `choices`.
    choices : tuple of str
        All answers the task may have.
    evidence : tuple of float32 (H // 16, W // 16)
        For each image, how much of each cell the asked objects cover, relative to the cell they cover most; all zero
        where the answer is in the background, or in nothing (the absent).
    """

    id: str
    task: str
    images: tuple[NDArray[np.uint8], ...]
    question: str
    answer: str
    choices: tuple[str, ...]
    evidence: tuple[NDArray[np.float32], ...]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The question and its answer as a chat; images are ``PIL.Image``."""
        content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(image)} for image in self.images]
        content.append({"type": "text", "text": self.question})
        return [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": self.answer}]},
        ]


def samples(split: str = "test", *, tasks: Sequence[str] = TASKS, per_task: int = 100, seed: int = 0) -> list[Sample]:
    """A fixed benchmark: `per_task` questions of each task, each about other images.

    Answers are drawn in turn, as far as a task's questions allow, so that no constant answer is often right.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"`` or ``"test"``.
    tasks : sequence of str
        Words of `TASKS`.
    per_task : int
        Questions per task; the standard error of an accuracy of 0.9 is 0.03 with 100.
    seed : int
        0 to 15; another seed takes other images of the split.

    Raises
    ------
    ValueError
        On an unknown task or split, or a seed out of range.
    """
    if isinstance(tasks, str):
        raise ValueError(f"tasks={tasks!r} is one word: give a list of tasks")
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"no task {unknown[0]!r}; there are {', '.join(TASKS)}")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed {seed} is out of range: choose 0 to {SEEDS - 1}")
    if not isinstance(per_task, int) or not 1 <= per_task <= 5000:
        raise ValueError(f"{per_task} questions per task: choose a whole number from 1 to 5000")
    found: dict[str, list[Sample]] = {task: [] for task in tasks}
    for kind in EXHIBITS:
        wanted = [task for task in tasks if KIND_OF.get(task, "scene") == kind]
        index = seed * _EXHIBITS_PER_SEED
        while any(len(found[task]) < per_task for task in wanted):
            exhibit = make_exhibit(kind, split_seed(split, index))
            index += 1
            for task in wanted:
                question = _next_question(exhibit, task, found[task]) if len(found[task]) < per_task else None
                if question is not None:
                    found[task].append(_sample(exhibit, question, f"{task}/{split}/{seed}-{len(found[task])}"))
    return [sample for task in tasks for sample in found[task]]


def _next_question(exhibit: Exhibit, task: str, before: list[Sample]) -> Question | None:
    """The question whose answer was asked for least so far; none while every one of them is well ahead."""
    counts = dict.fromkeys(CHOICES[task], 0)
    for sample in before:
        counts[sample.answer] += 1
    asked = [question for question in exhibit.questions if question.task == task]
    best = min(asked, key=lambda question: counts[question.answer], default=None)
    if best is not None and counts[best.answer] > min(counts.values()) + 1 + len(before) // (2 * len(counts)):
        return None
    return best


def _sample(exhibit: Exhibit, question: Question, name: str) -> Sample:
    images = tuple(picture.image for picture in exhibit.pictures)
    evidence = tuple(exhibit.under(question.evidence))
    return Sample(name, question.task, images, question.text, question.answer, CHOICES[question.task], evidence)


def to_dataset(found: Sequence[Sample]) -> Dataset:
    """The samples as a ``datasets.Dataset`` with columns id, task, images, question, answer, choices, messages.

    ``images`` holds pictures; ``messages`` is the chat with placeholders ``{"type": "image"}`` for them, which is
    what ``trl`` and lmms-eval expect; a processor wants each picture in its placeholder's place, as `Sample.messages` has it.
    Evidence stays out: it is for the oracle only. Needs ``pip install datasets``.
    """
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageColumn

    text = Value("string")
    part = {"type": text, "text": text}
    features = Features(
        {
            **dict.fromkeys(("id", "task", "question", "answer"), text),
            "choices": List(text),
            "images": List(ImageColumn()),
            "messages": List({"role": text, "content": List(part)}),
        }
    )

    def rows() -> Iterator[dict[str, Any]]:
        for sample in found:
            user, assistant = sample.messages
            images = [part["image"] for part in user["content"][:-1]]
            user["content"] = [*({"type": "image", "text": None} for _ in images), user["content"][-1]]
            yield {
                "id": sample.id,
                "task": sample.task,
                "question": sample.question,
                "answer": sample.answer,
                "choices": list(sample.choices),
                "images": images,
                "messages": [user, assistant],
            }

    columns: dict[str, list[Any]] = {name: [] for name in features}
    for row in rows():
        for name, value in row.items():
            columns[name].append(value)
    return Dataset.from_dict(columns, features=features)
