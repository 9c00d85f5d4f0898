"""Which method runs on which family, as a table: `asked` has asked foveate itself, on every family's default config."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from html import escape

import facts


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
    asked = facts.asked(facts.PAIRS)
    return {
        family: {
            name: Pair(None if told["options"] is None else tuple(told["options"].items()), told["sentence"])
            for name, told in row.items()
        }
        for family, row in asked.items()
    }


def table() -> str:
    """Families down, methods across, as Markdown; below it what is said where something is refused."""
    found, names = pairs(), facts.methods()
    notes: dict[str, int] = {}
    lines = [["family", *(f"[{method['class']}](catalog/{name}.md)" for name, method in names.items())]]
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
