"""Chats with images to train on: a Hugging Face data set, files of it, or the reference benchmark."""

from __future__ import annotations

import io
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from foveate import reference
from foveate.errors import first_line
from foveate.reference.exhibits import make_exhibit
from foveate.reference.model import tiles
from foveate.reference.scenes import SPLITS
from foveate.reference.train import TASK_WEIGHT
from foveate.terminal import CommandError

REFERENCE = "reference"
#: Chats about the reference benchmark where no number is given, how many turns one has at most (with more, a chat has little
#: in common with the benchmark's, of one turn), and what they are about.
EXHIBITED = 8000
TURNS = 3
MIX = (*["scene"] * 5, "chart", "table", "document", "pair", "video")
MARK = "<image>"


@dataclass(frozen=True)
class Chat:
    """One conversation.

    Attributes:
        messages: for a chat template; every part of a message is a text or a placeholder of an image.
        images: in the order of their placeholders.
    """

    messages: list[dict[str, Any]]
    images: list[Image.Image]


class Chats:
    """A data set of `Chat`, read when asked for: ``len`` and ``[i]``, as data loaders want it."""

    def __init__(self, rows: Any, source: str, folder: Path) -> None:
        self.rows, self.source, self.folder = rows, source, folder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Chat:
        try:
            return to_chat(self.rows[int(number)], self.folder)
        except CommandError as error:
            raise CommandError(f"row {number} of {self.source!r}: {error}") from None


def load(source: str, split: str, limit: int | None, seed: int, tile: int) -> Chats:
    """The chats of ``source``.

    Args:
        source: ``reference``; a folder of ``save_to_disk``; a ``.json``, ``.jsonl`` or ``.parquet`` file; or the id of a data
            set on the hub. Columns ``messages`` and ``images``, as trl and LLaMA-Factory have them.
        split: of a data set that has several.
        limit: use that many, drawn at random (`reference`: make that many).
        seed: of that draw.
        tile: cut the reference benchmark's images into squares of this side; 0: leave them whole.
    """
    if limit is not None and limit < 1:
        raise CommandError(f"--samples {limit}: give at least 1")
    if source == REFERENCE:
        return Chats(_Exhibits(split, limit or EXHIBITED, seed, tile), source, Path())
    rows = _dataset(source, split)
    columns = rows.column_names
    for wanted in ("messages", "images"):
        if wanted not in columns:
            raise CommandError(
                f"the data set {source!r} has no column {wanted!r}, only {', '.join(columns) or 'none'}: rename its columns "
                "to `messages` (role and content of each turn) and `images`"
            )
    if limit is not None and limit < len(rows):
        rows = rows.select(sorted(random.Random(seed).sample(range(len(rows)), limit)))
    if not len(rows):
        raise CommandError(f"the data set {source!r} is empty")
    folder = Path(source)
    chats = Chats(rows, source, folder if folder.is_dir() else folder.parent)
    if not any(chats[number].images for number in range(min(len(chats), 64))):
        raise CommandError(
            f"the first chats of {source!r} have no image, and without images there is nothing to compress"
        )
    return chats


def to_chat(row: Any, folder: Path) -> Chat:
    """One row of a data set. A text may stand for its images by ``<image>``, or a message have parts of type image."""
    if isinstance(row["images"], str):
        raise CommandError('`images` is a list, such as ["cat.jpg"]')
    images = [_image(image, folder) for image in row["images"] or []]
    messages: list[dict[str, Any]] = []
    for message in row["messages"] or []:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise CommandError('a message is {"role": ..., "content": ...}')
        messages.append({"role": message["role"], "content": _parts(message.get("content"))})
    if not any(message["role"] == "assistant" for message in messages):
        raise CommandError("no message is the assistant's, so there is nothing to learn")
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if places != len(images):
        raise CommandError(f"{len(images)} images for {places} places of images in the messages")
    return Chat(messages, images)


def _parts(content: Any) -> list[dict[str, str]]:
    if isinstance(content, str):
        texts = content.split(MARK)
        parts = [part for text in texts for part in ({"type": "image"}, {"type": "text", "text": text})][1:]
        return [part for part in parts if part["type"] == "image" or part["text"].strip()]
    found: list[dict[str, str]] = []
    for part in content if isinstance(content, list) else [None]:
        known: dict[str, Any] = part if isinstance(part, dict) else {}
        if known.get("type") == "image":
            found.append({"type": "image"})
        elif known.get("type") == "text" and isinstance(known.get("text"), str):
            found.append({"type": "text", "text": known["text"]})
        else:
            raise CommandError(f"content is text, or parts of type text or image, not {str(part or content)[:60]!r}")
    return found


def _image(image: Any, folder: Path) -> Image.Image:
    if isinstance(image, dict):  # how `datasets` stores an image that is not decoded
        image = io.BytesIO(image["bytes"]) if image.get("bytes") else image.get("path")
    if isinstance(image, str):
        image = folder / image
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        return opened.convert("RGB")
    except (OSError, AttributeError, ValueError) as error:
        raise CommandError(f"an image cannot be read: {first_line(error)}") from None


def _dataset(source: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise CommandError("data sets need datasets: pip install 'foveate[train]'") from None
    path = Path(source)
    kinds = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    try:
        if path.suffix in kinds:
            if not path.is_file():
                raise CommandError(f"there is no file {source!r}")
            with path.open("rb") as file:
                if not any(map(bytes.strip, file)):
                    raise CommandError(f"the data set {source!r} is empty")
            return datasets.load_dataset(kinds[path.suffix], data_files=str(path), split="train")
        if path.is_file():
            raise CommandError(f"the data set {source!r} is a file of another kind: give {', '.join(kinds)}")
        if not path.is_dir():
            return datasets.load_dataset(source, split=split)
        if not (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file():
            return datasets.load_dataset(source, split=split)
        found = datasets.load_from_disk(source)
    except (OSError, ValueError, ImportError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CommandError(f"cannot read the data set {source!r}: {first_line(error.__cause__ or error)}") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise CommandError(f"the data set {source!r} has no split {split!r}, only {', '.join(found)}")
        return found[split]
    return found


class _Exhibits:
    """The reference benchmark as chats; a turn is a question about the exhibit, as LLaVA's data joins those of an image.

    Rare tasks and answers come first, as the benchmark asks for all of them evenly, and so do tasks that are learnt late.
    """

    def __init__(self, split: str, count: int, seed: int, tile: int) -> None:
        if split not in SPLITS:
            raise CommandError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        if not 0 <= seed < reference.SEEDS:
            raise CommandError(f"seed {seed} is out of range: choose 0 to {reference.SEEDS - 1}")
        self.most = SPLITS[split][1] // reference.SEEDS
        if count > self.most:
            raise CommandError(f"--samples {count}: the {split} split has {self.most} for each seed")
        self.split, self.length, self.seed, self.tile = split, count, seed, tile
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
            messages.append({"role": "user", "content": [{"type": "text", "text": question.text}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
        messages[0]["content"][:0] = [{"type": "image"} for _ in images]
        return {"images": [Image.fromarray(image) for image in images], "messages": messages}

    def _rarity(self, question: reference.Question) -> float:
        """Inverse weight of a question (Efraimidis and Spirakis' draw): a task's answers are even, and tasks as in the
        training of the models."""
        often = max(1, self.often[question.task, question.answer]) * max(1, self.answers[question.task])
        return often / TASK_WEIGHT.get(question.task, 1.0)
