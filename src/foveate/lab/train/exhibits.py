"""The reference benchmark as chats to train on."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

import foveate_reference as reference
from foveate.lab.speech import Speech
from foveate.lab.terminal import CommandError
from foveate.training.data import Chats
from foveate_reference.exhibits import make_exhibit
from foveate_reference.model import tiles
from foveate_reference.scenes import SPLITS
from foveate_reference.train import TASK_WEIGHT

#: Chats where no number is given, how many turns one has at most (with more, a chat has little in common with the
#: benchmark's, of one turn), and what they are about.
EXHIBITED = 8000
TURNS = 3
MIX = (*["scene"] * 5, "chart", "table", "document", "pair", "video")


def load(split: str, limit: int | None, seed: int, tile: int, speech: Speech | None = None) -> Chats:
    """So many chats, in the words of ``speech``; ``tile``: cut the images into squares of this side, 0: leave them whole."""
    if limit is not None and limit < 1:
        raise CommandError(f"--samples {limit}: give at least 1")
    return Chats(_Exhibits(split, limit or EXHIBITED, seed, tile, speech or Speech()), "reference", Path())


class _Exhibits:
    """The reference benchmark as chats; a turn is a question about the exhibit, as LLaVA's data joins those of an image.

    Rare tasks and answers come first, as the benchmark asks for all of them evenly, and so do tasks that are learnt late.
    """

    def __init__(self, split: str, count: int, seed: int, tile: int, speech: Speech) -> None:
        if split not in SPLITS:
            raise CommandError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        if not 0 <= seed < reference.SEEDS:
            raise CommandError(f"seed {seed} is out of range: choose 0 to {reference.SEEDS - 1}")
        self.most = SPLITS[split][1] // reference.SEEDS
        if count > self.most:
            raise CommandError(f"--samples {count}: the {split} split has {self.most} for each seed")
        self.split, self.length, self.seed, self.tile, self.speech = split, count, seed, tile, speech
        first = [make_exhibit(kind, reference.split_seed(split, i)) for kind in dict.fromkeys(MIX) for i in range(64)]
        self.often = Counter((question.task, question.answer) for exhibit in first for question in exhibit.questions)
        self.answers = Counter(task for task, _ in self.often)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = self.seed * self.most + number
        seed = reference.split_seed(self.split, index)
        exhibit = make_exhibit(MIX[index % len(MIX)], seed)
        if not exhibit.questions:  # two images that have nothing to tell apart
            exhibit = make_exhibit("scene", seed)
        draw = random.Random(index)
        questions = sorted(exhibit.questions, key=lambda question: draw.random() ** self._rarity(question))[-TURNS:]
        draw.shuffle(questions)
        images = [picture.image for picture in exhibit.pictures]
        images = list(tiles(images, self.tile)) if self.tile else images
        messages: list[dict[str, Any]] = []
        for question in questions:
            asked, answer = self.speech.question(question.task, question.text), self.speech.answer(question.answer)
            messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        messages[0]["content"][:0] = [{"type": "image"} for _ in images]
        return {"images": [Image.fromarray(image) for image in images], "messages": messages}

    def _rarity(self, question: reference.Question) -> float:
        """Inverse weight of a question (Efraimidis and Spirakis' draw): a task's answers are even, and tasks as in the
        training of the models."""
        often = max(1, self.often[question.task, question.answer]) * max(1, self.answers[question.task])
        return often / TASK_WEIGHT.get(question.task, 1.0)
