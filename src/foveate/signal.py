"""A signal is something that a method may ask to know of the tokens at a site, besides their hidden states.

Each kind of signal is one file of ``foveate/runtime/signals/kinds``, which says where it exists and how it is read.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from foveate.errors import ConfigError, shown
from foveate.serialise import check

#: Kinds that are known before any layer has run: of the hidden states that are here, or of the layer to come. (A test compares
#: this with what each kind needs.)
KNOWN_BEFORE = frozenset(
    {
        "hidden",
        "next_row",
        "next_rows",
        "patches",
        "rope",
        "text",
        "text_ids",
        "text_pass",
        "text_place",
        "unrotated_row",
    }
)

#: Kinds that, of visual tokens, say nothing that the text after them could change: a token sees what comes before it. (A test
#: asks each kind.)
OF_IMAGES = frozenset({"cls_row", "hidden", "keys", "patches", "queries", "residual", "rope", "values"})

#: Kinds that are attention weights, which a fused kernel does not give: whoever asks pays for them. (A test compares this with
#: what each kind says of itself.)
OF_ATTENTION = frozenset({"cls_row", "last_row", "next_row", "next_rows", "received", "text_rows", "unrotated_row"})

_KINDS = Path(__file__).parent / "runtime" / "signals" / "kinds"
_OTHERS: dict[str, Callable[[Signal], bool]] = {}  # kinds of other packages: are they known before any layer has run?


@dataclass(frozen=True)
class Signal:
    """A signal has an address. In `Site.signals`, a string is short for ``Signal(kind)``.

    Attributes:
        kind: what it is: ``keys``, ``cls_row``, ``received``, ... (docs/sites.md lists them).
        layer: the block or decoder layer that it is of; negative counts from the end. None: the last one before the site.
        of: whose it is: that of the ``visual`` tokens; of the ``text`` tokens, packed sample after sample; of the ``cls`` token
            of each image; or of the tokens ``appended`` to it in the vision tower.
        at: ``tower``: of a vision block, though the site is in the language model. "": of the site's own side.
        rows: which queries attend, for attention of several: ``all`` tokens of the sample, its ``text`` tokens, or those of
            its ``question``, which come after its last visual token. "": as the kind does by default.
        heads: keep the heads of attention by several queries apart, where their mean is the default.
    """

    kind: str
    layer: int | None = None
    of: Literal["visual", "text", "cls", "appended"] = "visual"
    at: Literal["", "tower"] = ""
    rows: Literal["", "all", "text", "question"] = ""
    heads: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.kind not in kinds():
            raise ConfigError(f"there is no signal {shown(self.kind)}; there are {', '.join(sorted(kinds()))}")

    def first_layer(self, layers: int) -> int:
        """Tell the earliest decoder layer, of so many, before which a site may ask for it."""
        if self.at == "tower":
            return 0
        if self.layer is not None:
            return 1 + (self.layer + layers if self.layer < 0 else self.layer)
        other = _OTHERS.get(self.kind)
        return 0 if self.kind in KNOWN_BEFORE or (other is not None and other(self)) else 1

    def reads_text(self, place: str) -> bool:
        """Tell whether the text after an image decides what this says at a place (`Site.at`); of unknown kinds it may."""
        if self.at == "tower" or place in ("pixels", "tower", "tower_output"):
            return False
        return self.of == "text" or self.kind not in OF_IMAGES

    def __str__(self) -> str:
        words = [] if self.of == "visual" else [f"of {self.of}"]
        words += [f"by {self.rows} rows"] if self.rows else []
        words += ["with heads apart"] if self.heads else []
        words += [f"of layer {self.layer}"] if self.layer is not None else []
        words += ["in the tower"] if self.at else []
        return " ".join([self.kind, *words])


def kinds() -> frozenset[str]:
    """Return the names of all kinds of signals."""
    return _own_kinds() | _OTHERS.keys()


@cache
def _own_kinds() -> frozenset[str]:
    return frozenset(file.name for file in pkgutil.iter_modules([str(_KINDS)]))


def register_kind(name: str, known_before: Callable[[Signal], bool]) -> None:
    """Make a kind known by its name; `foveate.runtime.signals.kind.Kind` does so for every class of a kind.

    Args:
        known_before: says of an address whether it is known before any layer has run (see `KNOWN_BEFORE`).
    """
    _OTHERS[name] = known_before


def signal_of(asked: Signal | str) -> Signal:
    """Return a signal that may have been given by its kind alone.

    Raises:
        ConfigError: it is neither, or there is no such kind.
    """
    if isinstance(asked, Signal):
        return asked
    if not isinstance(asked, str):
        raise ConfigError(f"{shown(asked)} is no signal: give the name of a kind, such as 'keys', or a Signal")
    return _without_address(asked)


@cache
def _without_address(kind: str) -> Signal:
    return Signal(kind)


class Signals(Mapping[Signal, Tensor]):
    """A mapping of signals to their values; a string is short for ``Signal(kind)``."""

    def __init__(self, values: Mapping[Any, Tensor]) -> None:
        self._values = {signal_of(asked): value for asked, value in values.items()}

    def __getitem__(self, asked: Signal | str) -> Tensor:
        return self._values[signal_of(asked)]

    def __contains__(self, asked: object) -> bool:
        return isinstance(asked, (Signal, str)) and signal_of(asked) in self._values

    def __iter__(self) -> Iterator[Signal]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
