"""What layers have left for the sites after them: attention read and hidden states, of the tokens that are present now."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from foveate.runtime.layout import take_rows
from foveate.runtime.members import Members
from foveate.runtime.signals.kind import Kind
from foveate.runtime.signals.reading import Reading
from foveate.site import Site


def moment(site: Site) -> float:
    """When a site is reached on its side of the model, in half layers."""
    if site.at in ("tower", "decoder", "decode"):
        within = {"attention": 0.5, "ffn": 1.0}.get(site.part, float(site.where == "mid"))
        return 2 * site.layer + within
    return {"pixels": -2.0, "lm_entry": -1.0}.get(site.at, math.inf)


class Wanted:
    """What sites ask of the layers on one side of a model, and until when.

    Args:
        asked: the signals of each site.

    Attributes:
        attention, ahead: layer -> what is asked of its attention, after it has run, or before.
        entered, left, leading: layers whose hidden states are asked for, as they enter and leave, and CLS tokens as they enter.
        tower: what the language model asks of vision blocks, by its name (`Kind.kept_as`); paid: of these, what is read of
            their attention.
    """

    def __init__(self, asked: Iterable[tuple[Site, Sequence[Kind]]]) -> None:
        self.attention: dict[int, list[Kind]] = {}
        self.ahead: dict[int, list[Kind]] = {}
        self.entered: set[int] = set()
        self.left: set[int] = set()
        self.leading: set[int] = set()
        self.tower: set[Hashable] = set()
        self.paid: dict[Hashable, Kind] = {}
        self.until: dict[int, float] = {}
        for site, kinds in asked:
            for kind in kinds:
                self._add(kind, moment(site))

    def _add(self, kind: Kind, when: float) -> None:
        needs = kind.needs
        for name in ("attention", "ahead"):
            if name in needs:
                getattr(self, name).setdefault(kind.layer, []).append(kind)
        for name in ("entered", "left", "leading"):
            if name in needs:
                getattr(self, name).add(kind.layer)
        if "tower" in needs:
            self.tower.add(kind.kept_as)
            self.paid |= {} if kind.kept_as == kind.layer else {kind.kept_as: kind}
        else:
            self.until[kind.layer] = max(when, self.until.get(kind.layer, when))

    @property
    def blocks(self) -> set[int]:
        """Vision blocks whose hidden states the language model asks for."""
        return {name for name in self.tower if isinstance(name, int)}

    def keep_for(self, outside: Wanted) -> None:
        """Ask of the tower what sites of the language model want of it, until its end."""
        for kind in outside.paid.values():
            self.attention.setdefault(kind.layer, []).append(kind)
            self.until[kind.layer] = math.inf
        self.until |= dict.fromkeys(outside.blocks, math.inf)

    def reads(self, layer: int) -> bool:
        """Tell whether something is read of the attention of a layer."""
        return layer in self.attention or layer in self.ahead


@dataclass
class Past:
    """Of the tokens that are present now. Rows of hidden states are those of the layer, special tokens at the front included.

    Attributes:
        readings: layer -> what was read of its attention.
        entered, left: layer -> hidden states that it was given, and that it gave.
        leading: block -> ``(images, C)`` the CLS tokens that it was given.
        appended: ``(M, C)`` tokens that were appended in the tower, at its end, where they leave; None: there are none.
    """

    readings: dict[int, Reading] = field(default_factory=dict)
    entered: dict[int, Tensor] = field(default_factory=dict)
    left: dict[int, Tensor] = field(default_factory=dict)
    leading: dict[int, Tensor] = field(default_factory=dict)
    appended: Tensor | None = None

    def narrow(self, take: Tensor, width: int, step: Members | None = None) -> None:
        """Follow a reduction: ``take (B, P)`` of ``width`` rows stay, or ``take (rows,)`` of a packed tower's.

        ``step`` says what the others have become part of, where merged tokens stand for their members.
        """
        for reading in self.readings.values():
            if step is not None:
                reading.join(step)
            else:
                reading.narrow(_after(take, reading.present - width))
        for states in (self.entered, self.left):
            for layer, x in states.items():
                states[layer] = take_rows(x, _after(take, x.shape[-2] - width))

    def forget(self, now: float, until: dict[int, float]) -> None:
        """Let go of what nobody asks for after the moment ``now``."""
        for held in (self.readings, self.entered, self.left, self.leading):
            for layer in [layer for layer in held if until.get(layer, -math.inf) <= now]:
                del held[layer]

    def copy(self) -> Past:
        """Return what is there now, whatever leaves later."""
        readings = {layer: copy.copy(reading) for layer, reading in self.readings.items()}
        return Past(readings, dict(self.entered), dict(self.left), dict(self.leading), self.appended)


def _after(take: Tensor, leading: int) -> Tensor:
    """The same rows where ``leading`` more stand before them, which leave (CLS, at the output of a tower)."""
    return take + leading if take.dim() == 2 else take
