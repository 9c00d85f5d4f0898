"""Chats with images to train on: a Hugging Face data set, or files of it."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from foveate import extras
from foveate.errors import ConfigError, TrainingError, first_line, in_lines
from foveate.serialise import from_json

MARK = "<image>"
COLUMNS = ["messages", "images"]


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
        except TrainingError as error:
            raise TrainingError(f"row {number} of {self.source!r}: {error}") from None


def load(source: str, split: str = "train", limit: int | None = None, seed: int = 0) -> Chats:
    """Return the chats of ``source``.

    Args:
        source: a folder of ``save_to_disk``; a ``.json``, ``.jsonl`` or ``.parquet`` file; or the id of a data
            set on the hub. Columns ``messages`` and ``images``, as trl and LLaMA-Factory have them.
        split: of a data set that has several.
        limit: use that many, drawn at random.
        seed: of that draw.

    Raises:
        TrainingError: all rows that are no chats, as far as that shows without reading images.
    """
    if limit is not None and limit < 1:
        raise TrainingError(f"{limit} chats to train on: give at least 1")
    rows = _dataset(source, split)
    columns = rows.column_names
    for wanted in COLUMNS:
        if wanted not in columns:
            raise TrainingError(
                f"the data set {source!r} has no column {wanted!r}, only {', '.join(columns) or 'none'}: rename its columns "
                "to `messages` (role and content of each turn) and `images`"
            )
    if not len(rows):
        raise TrainingError(f"the data set {source!r} is empty")
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if path.suffix != ".jsonl":  # else its lines are checked, whose numbers an editor shows
        paths_alone = "Image" not in str(rows.features["images"])
        plain = rows.select_columns(COLUMNS if paths_alone else COLUMNS[:1])
        if wrong := _wrong(enumerate(plain), folder):
            raise TrainingError(in_lines(source, wrong, "row"))
    if limit is not None and limit < len(rows):
        rows = rows.select(sorted(random.Random(seed).sample(range(len(rows)), limit)))
    chats = Chats(rows, source, folder)
    if not any(chats[number].images for number in range(min(len(chats), 64))):
        raise TrainingError(
            f"the first chats of {source!r} have no image, and without images there is nothing to compress"
        )
    return chats


def check_lines(path: Path) -> None:
    """Raise `TrainingError` for all lines of a file that are no chats, as far as that shows without reading images.

    A column that no line has is left to `load`, which says what there is in its place.
    """
    names: set[str] = set()

    def read(line: str) -> Any:
        data = from_json(line)
        if not isinstance(data, dict):
            return data
        names.update(data)
        return {"images": None, **data}

    try:
        with path.open(encoding="utf-8") as file:
            rows = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            wrong = _wrong(rows, path.parent, read)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"cannot read the data set {str(path)!r}: {first_line(error)}") from None
    if wrong and (not names or names.issuperset(COLUMNS)):
        raise TrainingError(in_lines(path, wrong))


def _wrong(
    rows: Iterable[tuple[int, Any]], folder: Path, read: Callable[[Any], Any] = lambda row: row
) -> list[tuple[int, str]]:
    """The number of every row that is no chat, and why."""
    found = []
    for number, row in rows:
        try:
            _messages(read(row), folder)
        except (TrainingError, ConfigError) as error:
            found.append((number, str(error)))
    return found


def to_chat(row: Any, folder: Path) -> Chat:
    """One row of a data set. A text may stand for its images by ``<image>``, or a message have parts of type image."""
    messages = _messages(row, folder)
    return Chat(messages, [_image(image, folder) for image in row["images"] or []])


def _messages(row: Any, folder: Path) -> list[dict[str, Any]]:
    """The messages of a row, once all is right that shows without reading its images; a row may come without these."""
    given = row.get("messages", "") if isinstance(row, dict) else ""
    if not isinstance(given, (list, type(None))):
        raise TrainingError('a chat has `messages`, such as [{"role": "user", "content": "<image>What is it?"}, ...]')
    images = row.get("images", ()) or []
    if not isinstance(images, (list, tuple)):
        raise TrainingError('`images` is a list, such as ["cat.jpg"]')
    messages: list[dict[str, Any]] = []
    for message in given or []:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise TrainingError('a message is {"role": ..., "content": ...}')
        messages.append({"role": message["role"], "content": _parts(message.get("content"))})
    if not any(message["role"] == "assistant" for message in messages):
        raise TrainingError("no message is the assistant's, so there is nothing to learn")
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if "images" in row and places != len(images):
        raise TrainingError(f"{len(images)} images for {places} places of images in the messages")
    for image in images:
        if isinstance(image, str) and not (folder / image).is_file():
            raise TrainingError(f"there is no image {image!r}")
    return messages


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
            raise TrainingError(f"content is text, or parts of type text or image, not {str(part or content)[:60]!r}")
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
        raise TrainingError(f"an image cannot be read: {first_line(error)}") from None


def _dataset(source: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise TrainingError(f"data sets need datasets: {extras.install('datasets')} gets it") from None
    path = Path(source)
    kinds = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    try:
        if path.suffix in kinds:
            if not path.is_file():
                raise TrainingError(f"there is no file {source!r}")
            with path.open("rb") as file:
                if not any(map(bytes.strip, file)):
                    raise TrainingError(f"the data set {source!r} is empty")
            if path.suffix == ".jsonl":
                check_lines(path)
            return datasets.load_dataset(kinds[path.suffix], data_files=str(path), split="train")
        if path.is_file():
            raise TrainingError(f"the data set {source!r} is a file of another kind: give {', '.join(kinds)}")
        if not path.is_dir():
            return datasets.load_dataset(source, split=split)
        if not (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file():
            return datasets.load_dataset(source, split=split)
        found = datasets.load_from_disk(source)
    except (OSError, ValueError, ImportError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise TrainingError(f"cannot read the data set {source!r}: {first_line(error.__cause__ or error)}") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise TrainingError(f"the data set {source!r} has no split {split!r}, only {', '.join(found)}")
        return found[split]
    return found
