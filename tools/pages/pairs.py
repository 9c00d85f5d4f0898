"""Which method runs on which family: foveate itself is asked, on every family's default config.

Models are built without memory (torch's meta device), so the depths are those of real checkpoints and no weight is made.
`tests/docs/test_pairs.py` compares the answers with what the matrix of tests runs.
"""

from __future__ import annotations

import runpy
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from typing import Any

import torch
from repository import ROOT
from transformers import AutoModelForImageTextToText

import foveate
from foveate import FoveateError, Method
from foveate.models import list_families
from foveate.serialise import options_of

FAMILY_TABLES: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "family_tables.py"))
#: Depths that are tried where the default one is refused.
DEEPEST = 12


@dataclass(frozen=True)
class Pair:
    """A method on a family.

    Attributes:
        options: what must be set so that it runs: ``()``: nothing; None: it does not run.
        sentence: what `foveate.compress` says of the method with its defaults; "" if it takes it.
    """

    options: tuple[tuple[str, int], ...] | None
    sentence: str = ""

    @property
    def words(self) -> str:
        """``layer=4``."""
        return ", ".join(f"{name}={value}" for name, value in self.options or ())


@cache
def pairs() -> dict[str, dict[str, Pair]]:
    """Family -> method -> what came out."""
    found = {}
    for name, family in list_families().items():
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(FAMILY_TABLES["config_of"](family))
        found[name] = {method: _ask(model, cls()) for method, cls in foveate.list_methods().items()}
    return found


def table() -> str:
    """Families down, methods across, as Markdown; below it what is said where something is refused."""
    found, names = pairs(), list(foveate.list_methods())
    notes: dict[str, int] = {}
    lines = [["family", *(f"[{foveate.list_methods()[name].__name__}](catalog/{name}.md)" for name in names)]]
    lines.append(["---"] * len(lines[0]))
    for family, row in found.items():
        lines.append([f"`{family}`", *(_cell(row[name], family, notes) for name in names)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = "\n".join(f"{number}. {escape(sentence)}" for sentence, number in notes.items())
    return f'<div class="fv-matrix" markdown>\n\n{text}\n\n</div>\n\n## What is refused, and what is said\n\n{said}\n'


def exceptions(method: str) -> tuple[list[str], dict[str, str]]:
    """Families that refuse a method, and those that take it with other options than its defaults."""
    column = {family: row[method] for family, row in pairs().items()}
    refused = [family for family, pair in column.items() if pair.options is None]
    return refused, {family: pair.words for family, pair in column.items() if pair.options}


def _cell(pair: Pair, family: str, notes: dict[str, int]) -> str:
    if not pair.sentence:
        return '<span class="fv-yes" title="runs with its defaults">✓</span>'
    number = notes.setdefault(_shortened(pair.sentence, family), len(notes) + 1)
    if pair.options is None:
        return f'<span class="fv-no" title="{escape(pair.sentence)}">–</span> <sup>{number}</sup>'
    return f'<span class="fv-with" title="{escape(pair.sentence)}">`{pair.words}`</span> <sup>{number}</sup>'


def _shortened(sentence: str, family: str) -> str:
    """Without the family's name, and the list of layers at the end, which differs with its depth."""
    head, mark, _ = sentence.partition("in this model use layer")
    return (f"{head}{mark} …" if mark else sentence).replace(f"'{family}'", "'…'")


def _ask(model: Any, method: Method) -> Pair:
    sentence = _refusal(model, method)
    if not sentence:
        return Pair(())
    for option, value in _depths(method):
        changes: dict[str, Any] = {option: value}
        if not _refusal(model, replace(method, **changes)):
            return Pair(((option, value),), sentence)
    return Pair(None, sentence)


def _refusal(model: Any, method: Method) -> str:
    try:
        foveate.compress(model, method).remove()
    except FoveateError as error:
        return str(error)
    return ""


def _depths(method: Method) -> Iterator[tuple[str, int]]:
    """Later depths for the one option that says where a method acts, if it has one."""
    for option, (hint, _) in options_of(type(method)).items():
        if option in ("layer", "block") and (hint is int or int in typing.get_args(hint)):
            yield from ((option, value) for value in range(1 + (getattr(method, option) or 0), DEEPEST + 1))
