"""Hidden states: of an earlier layer, of the text, of CLS tokens, or of a vision block once the language model runs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import CHANNELS, Asker, Draw, Kind, Need, Paged
from foveate.signal import Signal


class Hidden(Kind):
    """Hidden states ``(N, C)`` that have entered layer ``layer``, of the tokens that are present now; without a layer, those
    that are here (as in ``tokens.hidden``).

    ``of="text"``: ``(M, C)`` of the text tokens, sample after sample (`Tokens.text_counts` each). ``of="cls"``: ``(S, C)`` of
    the CLS token of each image (tile). ``of="appended"``, at the tower's output: ``(M, C)`` of the tokens that were appended in
    the tower, image after image, and leave there. ``at="tower"``: ``(N, unit * C)`` of a vision block, at a site of the
    language model; without a layer, those that the tower has put out, which the projector was given. They cost memory from
    their layer to the site, and nothing else.
    """

    name = "hidden"
    places = frozenset({"tower", "tower_output", "lm_entry", "decoder"})
    of = ("visual", "text", "cls", "appended")
    outlives: ClassVar[bool] = True
    paged: ClassVar[Paged] = "pieces"

    @property
    def needs(self) -> frozenset[Need]:
        if self.signal.at == "tower":
            return frozenset({"tower"})
        if self.signal.of == "appended":
            return frozenset()
        if self.signal.of == "cls":
            return frozenset() if self.inside and self.signal.layer is None else frozenset({"leading"})
        return frozenset() if self.signal.layer is None else frozenset({"entered"})

    @classmethod
    def usual_layer(cls, signal: Signal, by: Asker) -> int:
        return by.host.blocks if signal.at == "tower" else by.last + 1  # which is given what is here now

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        if signal.of == "appended" and (by.site.at != "tower_output" or signal.layer is not None):
            raise by.refuse(
                signal, "they are known at the tower's output, as they are there; before it they are among the tokens"
            )

    @property
    def kept_as(self) -> Hashable:
        return self.layer

    def read(self, here: Presence) -> Tensor:
        if self.signal.at == "tower":
            return here.of_tower(self)
        if self.signal.of == "appended":
            return here.pick(here.hidden)[:0] if here.past.appended is None else here.past.appended
        if self.signal.of == "cls":
            return here.past.leading[self.layer] if self.needs else here.hidden[:, 0]
        state = here.past.entered[self.layer] if self.needs else here.hidden
        return here.text.packed(state) if self.signal.of == "text" else here.pick(state)

    def made_up(self, draw: Draw) -> Tensor:
        return draw(CHANNELS)
