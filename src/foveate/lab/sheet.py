"""One method for a person at a terminal: its docstring, where it acts, and its options, each with what it takes and does."""

from __future__ import annotations

import re
from textwrap import fill, wrap
from typing import Any

from foveate.lab import index
from foveate.serialise import in_words

#: What all methods have, and no docstring says again.
SHARED = {
    "keep": "how much stays, as said above; by default the method's own setting",
    "positions": "what survivors do with position ids: keep them, or count anew as if the prompt had been shorter (renumber"
    "; native, for methods that act before the language model); virtual: a merged token stands at the places of all its "
    "members",
}
#: What of it is not for methods that act where positions exist already.
NATIVE = "; native, for methods that act before the language model"
INSIDE = ("decoder", "decode", "cache")

_ATTRIBUTES = re.compile(r"\n*^Attributes:\n(.*)\Z", re.M | re.S)
_ENTRY = re.compile(r"^    (\w[\w, ]*):(.*(?:\n {8}.*)*)", re.M)


def about(doc: str, width: int) -> str:
    """The docstring without its list of options, in lines of ``width``."""
    paragraphs = _ATTRIBUTES.sub("", doc).split("\n\n")
    return "\n\n".join(fill(" ".join(_plain(paragraph).split()), width) for paragraph in paragraphs)


def budget(facts: dict[str, Any]) -> str:
    """Whether the image decides how many tokens stay."""
    if not facts["fixed_budget"]:
        return "by content: how many tokens stay depends on what is in the image"
    fixed = "fixed: how many tokens stay follows from the size of the image alone"
    threshold = facts["options"].get("threshold")
    if threshold is not None and threshold["default"] is None:
        return f"{fixed}; with a threshold, on what is in it"
    return fixed


def options(facts: dict[str, Any], width: int) -> list[str]:
    """A few lines for each option, in the order in which a reader wants to know."""
    said = SHARED | _said(facts["doc"])
    names = sorted(facts["options"], key=lambda name: (name == "positions") - (name == "keep"))
    column = max(map(len, names), default=0) + 2
    lines = []
    for name in names:
        option = facts["options"][name]
        if name == "positions" and any(place in INSIDE for place in facts["places"]):
            said = {**said, name: said[name].replace(NATIVE, "")}
            option = {**option, "type": option["type"].replace("'native', ", "")}
        text = ". ".join(filter(None, [said.get(name, "").rstrip("."), f"Takes {takes(option['type'])}"]))
        if option["default"] is not None:
            text += f"; default {_value(option['default'])}"
        first, *rest = wrap(text[0].upper() + text[1:], width - column - 2)
        lines += [f"  {name:<{column}}{first}", *(" " * (column + 2) + line for line in rest)]
    return lines


def takes(text: str) -> str:
    """``float | None`` -> ``a number``: what an option takes, in words."""
    try:
        return in_words(index.hint(text))
    except (ValueError, KeyError, SyntaxError):  # a type of another package
        return text


def _said(doc: str) -> dict[str, str]:
    """What a docstring says of each option."""
    found = _ATTRIBUTES.search(doc)
    entries = _ENTRY.findall(found[1]) if found else []
    return {name.strip(): " ".join(_plain(text).split()) for names, text in entries for name in names.split(",")}


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _value(default: Any) -> str:
    return (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:.4g}"
        if isinstance(default, float)
        else str(default)
    )
