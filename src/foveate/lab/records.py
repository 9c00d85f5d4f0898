"""A file of records, one a line: images or videos, and what is asked about them. Shared by the commands.

``{"image": "cat.jpg", "prompt": "What is it?"}`` is a record, and so is ``{"video": "walk.mp4", "prompt": ...}``; ``images``
and ``videos`` are lists. In place of a prompt, ``messages`` is a conversation, whose ``<image>`` and ``<video>`` stand for the
images and videos in their order, as in data to train on. Paths are relative to the file. An ``id`` may name a record; else its
line does.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from foveate.errors import ConfigError, in_lines, nearest
from foveate.lab.terminal import CommandError
from foveate.serialise import from_json

EXAMPLE = '{"image": "cat.jpg", "prompt": "What is it?"}'
MEDIA = ("image", "images", "video", "videos")
KNOWN = ("id", *MEDIA, "prompt", "messages")
_ADDRESS = re.compile(r"^(https?|data):")


@dataclass(frozen=True)
class Record:
    """One question.

    Attributes:
        id: unique in its file.
        messages: of a chat; every part of a message is a text, or has the path or address of an image or a video.
        digest: of the line.
        line: its number in the file.
        error: why the line cannot be asked; then there are no messages.
    """

    id: str
    messages: list[dict[str, Any]]
    digest: str
    line: int
    error: str = ""

    @property
    def media(self) -> tuple[bool, bool]:
        """Whether it has images, and videos."""
        kinds = {part["type"] for message in self.messages for part in message["content"]}
        return "image" in kinds, "video" in kinds

    @property
    def text(self) -> str:
        """All words that it has."""
        parts = (part for message in self.messages for part in message["content"])
        return " ".join(part["text"] for part in parts if part["type"] == "text")


@dataclass(frozen=True)
class Question:
    """Images and what is asked about them; ``id`` is unique in its file."""

    id: str
    images: tuple[Path, ...]
    text: str


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)


def read(path: Path) -> list[Record]:
    """Every record of a file; a line that is none has an `error`.

    Raises:
        CommandError: there is no such file, it is empty, or records have the same id.
    """
    return each(path, lambda number, line: _record(number, line, path.parent))


def check(path: Path) -> None:
    """Raise `CommandError` for a file that cannot be read, or of which no record can be asked."""
    found = read(path)
    if all(record.error for record in found):
        raise CommandError(in_lines(path, [(record.line, record.error) for record in found]))


def questions(path: Path) -> list[Question]:
    """Every line of a file as text about images; a line that is none is an error of the whole file.

    Raises:
        CommandError: all that is wrong with the file, but for what is in its images.
    """
    return each(path, lambda number, line: question(number, line, path.parent))


def each(path: Path, make: Callable[[int, str], T]) -> list[T]:
    """What ``make`` makes of every line, with its number. `CommandError` says of all lines what is wrong with them."""
    found: dict[str, tuple[int, T]] = {}
    wrong: list[tuple[int, str]] = []
    for number, line in lines(path):
        try:
            one = make(number, line)
        except CommandError as error:
            wrong.append((number, str(error)))
            continue
        before, _ = found.setdefault(one.id, (number, one))
        if before != number:
            why = (
                f"the id {one.id!r} is that of line {before}, too: give each its own; a line without one has its number"
            )
            wrong.append((number, why))
    if wrong:
        raise CommandError(in_lines(path, wrong))
    return [one for _, one in found.values()]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, and the number of each."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommandError(f"there is no file {str(path)!r}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{str(path)!r} is not text in UTF-8: give a file of lines such as {EXAMPLE}") from None
    except OSError as error:
        raise CommandError(f"cannot read {str(path)!r}: {error}") from None
    found = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not found:
        raise CommandError(f"{str(path)!r} has no prompt: write one a line, such as {EXAMPLE}")
    yield from found


def fields(line: str) -> dict[str, Any]:
    """The object that a line is."""
    try:
        data = from_json(line)
    except ConfigError as error:
        raise CommandError(f"{error}; write a line such as {EXAMPLE}") from None
    if not isinstance(data, dict):
        raise CommandError(f"a prompt is an object, such as {EXAMPLE}")
    if not data.keys() & {*MEDIA, "messages"}:  # a text alone; other fields may be labels, unless they look like a slip
        for name in data:
            if name not in KNOWN and (near := nearest(name, KNOWN)):
                raise CommandError(f"there is no field {name!r}{near}: rename it")
    return data


def name_of(data: dict[str, Any], number: int) -> str:
    """The id of a record; that of its line, where it has none."""
    name = data.get("id", number)
    if not isinstance(name, (str, int)):
        raise CommandError("`id` is a text or a number")
    return str(name)


def paths_of(data: dict[str, Any], kind: str) -> list[str]:
    """What a record says of its images, or its videos: one as ``kind``, or a list as its plural."""
    several = f"{kind}s"
    if kind in data and several in data:
        raise CommandError(f"give `{kind}` or `{several}`, not both")
    paths = data.get(several, [data[kind]] if kind in data else [])
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise CommandError(f"give `{kind}`, a path, or `{several}`, a list of paths")
    return paths


def question(number: int, line: str, folder: Path) -> Question:
    """A line as text about images. Raise `CommandError` for any other, and for an image that is not there."""
    data = fields(line)
    images = paths_of(data, "image")
    if not images:
        raise CommandError(
            "no image: give `image`, a path, or `images`, a list of paths; without one nothing is compressed"
        )
    if data.get("prompt") is None:
        raise CommandError("no `prompt`: give the text that is asked about the image")
    for image in images:
        if _ADDRESS.match(image):
            raise CommandError(f"{image[:80]!r} is an address: save the image, and give its file")
        if not os.path.exists(folder / image):
            raise CommandError(f"there is no image {image!r}")
    found = tuple(folder / image for image in images)
    return Question(name_of(data, number), found, _prompt(data["prompt"]))


def _prompt(text: Any) -> str:
    if not isinstance(text, str):
        raise CommandError(f"`prompt` is a text, not {text!r}")
    if not text.strip():
        raise CommandError("the prompt is empty: ask something, e.g. 'What is in the image?'")
    return text


def _record(number: int, line: str, folder: Path) -> Record:
    name, digest = str(number), hashlib.sha256(line.strip().encode()).hexdigest()[:16]
    try:
        data = fields(line)
        name = name_of(data, number)
        return Record(name, _messages(data, folder), digest, number)
    except CommandError as error:
        return Record(name, [], digest, number, str(error))


def _messages(data: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    given = {
        kind: [{"type": kind, "url": _located(path, folder)} for path in paths_of(data, kind)]
        for kind in ("image", "video")
    }
    prompt, messages = data.get("prompt"), data.get("messages")
    if (prompt is None) == (messages is None):
        raise CommandError(f"give `prompt`, the text that is asked, or `messages`, a conversation: such as {EXAMPLE}")
    if prompt is not None:
        parts = [*given["image"], *given["video"], {"type": "text", "text": _prompt(prompt)}]
        return [{"role": "user", "content": parts}]
    found = [_message(message, folder) for message in messages] if isinstance(messages, list) else []
    if not found:
        raise CommandError('`messages` is a list such as [{"role": "user", "content": "<image>What is it?"}]')
    if found[-1]["role"] == "assistant":
        raise CommandError("the last of the `messages` is the assistant's, so nothing is asked: leave it out")
    for kind, media in given.items():
        places = [part for message in found for part in message["content"] if part == {"type": kind}]
        if len(places) != len(media):
            raise CommandError(f"{len(media)} {kind}s for {len(places)} places of {kind}s in the messages")
        for place, one in zip(places, media):
            place.update(one)
    return found


def _message(message: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise CommandError('a message is {"role": ..., "content": ...}')
    content = message.get("content")
    if isinstance(content, str):
        words = re.split("(<image>|<video>)", content)
        parts = [
            {"type": word[1:-1]} if word in ("<image>", "<video>") else {"type": "text", "text": word} for word in words
        ]
        return {"role": message["role"], "content": [part for part in parts if part.get("text", "<image>").strip()]}
    parts = []
    for part in content if isinstance(content, list) else [None]:
        known: dict[str, Any] = part if isinstance(part, dict) else {}
        kind = known.get("type")
        where = known.get(str(kind), known.get("url", known.get("path")))
        if kind == "text" and isinstance(known.get("text"), str):
            parts.append({"type": "text", "text": known["text"]})
        elif kind in ("image", "video") and where is None:
            parts.append({"type": str(kind)})
        elif kind in ("image", "video") and isinstance(where, str):
            parts.append({"type": str(kind), "url": _located(where, folder)})
        else:
            raise CommandError(
                f"content is text, or parts of type text, image or video, not {str(part or content)[:60]!r}"
            )
    return {"role": message["role"], "content": parts}


def _located(path: str, folder: Path) -> str:
    if _ADDRESS.match(path):
        return path
    place = folder / path
    if not os.path.exists(place):
        raise CommandError(f"{path!r}: there is no such file")
    return str(place)
