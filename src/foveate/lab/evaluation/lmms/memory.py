"""What has been answered, so that nobody is asked twice: in memory, and in files where a run may have to go on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.lab.asker import Cost
from foveate.lab.evaluation.store import Store, kept


@dataclass(frozen=True)
class Note:
    """An answer.

    Attributes:
        id: the name of its question.
        text: what was generated; of a choice: ``greedy`` if it is the likeliest text, or nothing.
        tokens: generated.
        loss: of a choice.
        cost: None: of the stock model.
    """

    id: str
    text: str
    tokens: int
    loss: float
    cost: Cost | None


class Memory:
    """Notes by the name of their question."""

    def __init__(self, path: Path | None = None, header: dict[str, Any] | None = None) -> None:
        """
        Args:
            path: the file of this process; None: nothing is written. Files of other processes beside it, with the same name
                but for the number, are read, too.
            header: what the answers are to; a file about something else is refused.
        """
        self._notes: dict[str, Note] = {}
        self._store: Store[Note] | None = None
        if path is None:
            return
        name, _, _ = path.stem.rpartition("-")
        for other in sorted(path.parent.glob("*.jsonl")):
            if other != path and re.fullmatch(re.escape(name) + r"-\d+", other.stem):
                self._learn(kept(other, header or {}, Note))
        self._store = Store(path, header or {}, Note)
        self._learn(self._store.records.values())

    def __getitem__(self, name: str) -> Note:
        return self._notes[name]

    def get(self, name: str) -> Note | None:
        """What was answered, if anything."""
        return self._notes.get(name)

    def add(self, notes: Sequence[Note]) -> None:
        """Keep them, now."""
        self._learn(notes)
        if self._store is not None:
            self._store.add(notes)

    def costs(self) -> list[Cost]:
        """Of all answers that have one."""
        return [note.cost for note in self._notes.values() if note.cost is not None]

    @staticmethod
    def names(requests: Sequence[Any]) -> list[str]:
        """A name for each request of lmms-eval: task, document, choice, and which time it is asked."""
        seen: Counter[str] = Counter()
        found = []
        for request in requests:
            name = f"{request.task_name}/{request.doc_id}/{request.idx}"
            if request.metadata.get("__padding_only__"):
                found.append(f"{name}/0")  # asked once more by lmms-eval, so that all processes ask equally many
            else:
                found.append(f"{name}/{seen[name]}")
                seen[name] += 1
        return found

    def _learn(self, notes: Iterable[Note]) -> None:
        self._notes |= {note.id: note for note in notes}
