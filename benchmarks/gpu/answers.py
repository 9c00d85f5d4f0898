"""A method for every kind of answer, and a way to have another run decide what the first one has decided.

Kernels round differently, so two of them may rank two tokens that are nearly alike in another order. What comes after such a
choice is then of other tokens, which says nothing of the kernel. So what is decided with the plain kernel is decided with the
others: where a method decides otherwise itself, this is counted, and overruled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from foveate import ADSC, AIR, IPCV, LUVC, DyCoke, FastV, Method, QCache, RedundancyLens, Stride, ToMe, VisionZip
from foveate.answers import Append, Channels, Remember, Sight
from foveate.tokens import Reduction

TESTS = Path(__file__).resolve().parents[2] / "tests"


def probe(file: str, name: str, **options: Any) -> Method:
    """One of the methods that the tests show how to say a paper with."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    made: Method = getattr(import_module(f"probes.{file}"), name)(**options)
    return made


def answers() -> dict[str, Method]:
    """Kind of answer -> a method that gives it, in a model of six layers and four blocks."""
    return {
        "keep": Stride(ratio=0.5, layers=(0, 2)),
        "keep, by attention": FastV(layer=2),
        "keep, a schedule": ADSC(layers=(1, 2, 4)),
        "keep, as a shorter prompt": Stride(ratio=0.5, layers=(0, 2), positions="renumber"),
        "merge in the tower": ToMe(keep=0.6),
        "merge at its output": VisionZip(keep=0.4),
        "merge, then keep": LUVC(),
        "park and restore in the tower": IPCV(block=1, stabilise=1),
        "park and restore in the decoder": probe("layer_skip", "LayerSkip", first=2, last=4, ratio=0.3),
        "park and attend in the decoder": probe("layer_skip", "LayerSkip", first=2, last=4, ratio=0.3, read=True),
        "skip": probe("synthetic", "Skips", first=1),
        "channels": probe("dynamic_ffn", "DynamicFfn", layers=(1, 2)),
        "sight": probe("synthetic", "Paths", layer=3),
        "sight in a window": RedundancyLens(layers=(), hollow_layers=(1, 2, 3, 4), window=8),
        "append": probe("voco", "VoCo", layer=3, hides=False),
        "append in the tower": probe("registers", "Registers"),
        "reuse": QCache(),
        "virtual positions": probe("synthetic", "Alike", positions="virtual"),
        "cache": probe("snapkv", "SnapKV"),
        "append, sight and cache": probe("voco", "VoCo"),
        "inject": AIR(layers=(2, 3), outliers=4, window=2, into="text"),
        "decode": DyCoke(layer=2),
    }


class Script:
    """What a method has answered in one run, for others to follow.

    Attributes:
        asked, alike: how often it was asked in the run that follows, and how often it decided the same by itself.
    """

    def __init__(self) -> None:
        self._lines: list[Any] = []
        self.asked = self.alike = 0

    @contextmanager
    def written(self, method: Method) -> Iterator[None]:
        """A block in which the answers are noted."""

        def note(answer: Callable[..., Any], *words: Any) -> Any:
            self._lines.append(answer(*words))
            return self._lines[-1]

        with _answering(method, note):
            yield

    @contextmanager
    def followed(self, method: Method) -> Iterator[None]:
        """A block in which they are given again."""
        lines = iter(self._lines)
        self.asked = self.alike = 0

        def follow(answer: Callable[..., Any], *words: Any) -> Any:
            own, noted = answer(*words), next(lines)
            same = alike(own, noted)
            self.asked, self.alike = self.asked + 1, self.alike + same
            return own if same else noted

        with _answering(method, follow):
            yield


def alike(one: Any, other: Any) -> bool:
    """Whether two answers decide the same; the values that they give may differ."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Reduction):
        groups = [None if each.groups is None else each.groups() for each in (one, other)]
        return one.counts == other.counts and _equal(one.keep, other.keep) and _equal(*groups)
    if isinstance(one, (Append, Remember)):
        return bool(one.packed()[1] == other.packed()[1])
    assert isinstance(one, (Channels, Sight))
    return all(_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    return bool(one == other)


@contextmanager
def _answering(method: Method, how: Callable[..., Any]) -> Iterator[None]:
    """A block in which ``how`` is called with what each part of ``method`` has for `Method.answer`, and what that was given."""
    classes: list[Any] = list({type(part): None for part in method.parts()})
    own = {cls: vars(cls).get("answer") for cls in classes}
    for cls in classes:
        plain = cls.answer

        def answer(*words: Any, plain: Callable[..., Any] = plain) -> Any:
            return how(plain, *words)

        cls.answer = answer
    try:
        yield
    finally:
        for cls, before in own.items():
            if before is None:
                del cls.answer
            else:
                cls.answer = before
