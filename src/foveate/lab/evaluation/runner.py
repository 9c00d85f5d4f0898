"""What every evaluation does, whatever is asked: each entry of the plan answers, batch by batch, and its answers are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import foveate
from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.request import Contest
from foveate.lab.evaluation.store import Kept, Store, file_name

Tell = Callable[[str, float], None]
"""Gets what happens now, and the share of the work that is done."""


class Asked(Protocol):
    """Something that is asked, by its name."""

    @property
    def id(self) -> str: ...


A = TypeVar("A", bound=Asked)
P = TypeVar("P")
R = TypeVar("R", bound=Kept)


def versions(*more: str) -> dict[str, str]:
    """Of what answers depend on."""
    return {name: version(name) for name in ("torch", "transformers", *more)} | {"foveate": foveate.__version__}


def about(entry: Entry, by: str) -> dict[str, Any]:
    """An entry, as the header of a file says it."""
    return {
        "entry": entry.label,
        "budget": entry.budget,
        "by": None if entry.budget is None else by,
        "method": None if entry.method is None else entry.method.to_dict(),
    }


def place_of(request: Contest, identity: dict[str, Any], entry: Entry, **more: Any) -> tuple[Path, dict[str, Any]]:
    """The file of an entry's answers, and its header; ``more`` is what else they depend on, such as a seed."""
    name = file_name(str(entry), None if entry.budget is None else request.by, more.get("seed"))
    return request.out / "answers" / name, {**identity, **about(entry, request.by), **more}


def store_of(request: Contest, identity: dict[str, Any], entry: Entry, kind: Callable[..., R], **more: Any) -> Store[R]:
    """Where the answers of an entry are kept, as `place_of` has it."""
    return Store(*place_of(request, identity, entry, **more), kind)


def ask(
    groups: Sequence[Sequence[A]],
    stores: dict[Entry, Store[R]],
    prepare: Callable[[Sequence[A]], P],
    answer: Callable[[P, Entry], Iterable[R]],
    tell: Tell,
) -> None:
    """Ask every entry what it has not answered yet. A batch is prepared once for all of them."""
    done, total = 0, sum(map(len, groups)) * len(stores)
    for group in groups:
        waiting = {
            entry: store for entry, store in stores.items() if any(each.id not in store.records for each in group)
        }
        done += (len(stores) - len(waiting)) * len(group)
        if waiting:
            tell("preparing a batch", done / total)
            prepared = prepare(group)
        for entry, store in waiting.items():
            tell(str(entry), done / total)
            store.add(answer(prepared, entry))
            done += len(group)
