"""A method from command-line words: ``--method fastv --keep 0.3 --option layer=3``."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.lab.words import check_one, spelled, text_of
from foveate.method import Method
from foveate.methods import method_class, method_from_dict
from foveate.sums import Composed


def method_from_words(
    name: str | None, keep: float | None, assignments: Sequence[str], described: str | None
) -> Method:
    """Exactly one of ``name`` and ``described`` (JSON, or a file of it) says what the method is.

    Args:
        name: a method, or several joined by ``+``.
        keep: of the method, or of the whole sum.
        assignments: ``option=value``; in a sum, ``method.option=value``.
        described: what `Method.to_dict` wrote.
    """
    check_one(name, keep, assignments, described)
    if described is not None:
        return method_from_dict(text_of(described))
    asked = spelled(str(name), keep, assignments, method_class)
    classes = [method_class(part.strip()) for part in str(name).split("+")]
    if len(classes) == 1:
        return classes[0].from_options({**asked.options[0], **asked.whole})
    return Composed(tuple(cls.from_options(given) for cls, given in zip(classes, asked.options)), **asked.whole)
