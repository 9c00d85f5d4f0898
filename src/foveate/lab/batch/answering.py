"""Records whose images, videos and texts are of any length, asked in batches of which one may fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from foveate.errors import InputError, first_line
from foveate.lab.asker import Answer as Said
from foveate.lab.batch.answers import Answer
from foveate.lab.chats import Chat, Frames, chat
from foveate.lab.records import Record

_BROKEN = (InputError, ValueError, TypeError, IndexError, KeyError, RuntimeError, OSError)


class Asked(Protocol):
    """A model that continues chats: of transformers (`foveate.lab.asker.Asker`), or in an engine."""

    def generate(self, chats: Sequence[Chat], options: Mapping[str, Any], most: int) -> list[Said]:
        """Continue each chat, by at most so many tokens where the options do not say."""


def ask(asker: Asked, records: Sequence[Record], max_new_tokens: int, frames: Frames) -> list[Answer]:
    """An answer to each, in their order; what cannot be read or asked has an error in place of one."""
    found: dict[str, Answer] = {}
    asked: list[tuple[Record, Chat]] = []
    for record in records:
        try:
            if record.error:
                raise InputError(record.error)
            asked.append((record, chat(record.messages, frames)))
        except _BROKEN as error:
            found[record.id] = Answer(record.id, record.digest, error=first_line(error))
    for answer in _said(asker, asked, max_new_tokens):
        found[answer.id] = answer
    return [found[record.id] for record in records]


def _said(asker: Asked, asked: Sequence[tuple[Record, Chat]], max_new_tokens: int) -> list[Answer]:
    """The answers of a batch; where it fails, of its halves, until a single record fails."""
    if not asked:
        return []
    try:
        said = asker.generate([one for _, one in asked], {}, max_new_tokens)
        return [Answer(record.id, record.digest, one.text, one.tokens) for (record, _), one in zip(asked, said)]
    except _BROKEN as error:
        if len(asked) == 1:
            record = asked[0][0]
            return [Answer(record.id, record.digest, error=first_line(error))]
    middle = len(asked) // 2  # outside of the handler, which holds on to the memory of what failed
    return [part for half in (asked[:middle], asked[middle:]) for part in _said(asker, half, max_new_tokens)]
