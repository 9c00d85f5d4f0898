"""Attention received."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Asker, Draw, Kind, Need, Slots
from foveate.runtime.signals.reading import Reading
from foveate.signal import Signal


class Received(Kind):
    """Attention that each token receives ``(N,)``: the mean over heads and over all queries of its attention segment or sample.

    In the language model ``rows="text"`` is the mean over the text tokens only, and ``rows="question"`` over those after the
    last visual token; ``at="tower"`` is of a vision block, by default the last one. All rows cost ``H * Q * K * d`` products,
    in chunks; of fewer, as much as their rows.
    """

    name = "received"
    places = frozenset({"tower", "tower_output", "decoder", "cache"})
    rows = ("all", "text", "question")
    outlives = True
    paged = "whole"
    in_parts = "mean"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"tower"}) if self.signal.at else super().needs

    @classmethod
    def usual_layer(cls, signal: Signal, by: Asker) -> int:
        return by.host.blocks - 1 if signal.at else by.last

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        if signal.rows in ("text", "question") and (signal.at or by.site.at.startswith("tower")):
            raise by.refuse(signal, "no text reaches the vision tower")

    def ask(self, reading: Reading, slots: Slots) -> None:
        if self.queries == "all":
            reading.received = True
        else:
            reading.queries[self.queries] = slots(self.queries)

    def read(self, here: Presence) -> Tensor:
        return here.of_tower(self) if self.signal.at else self.read_in_tower(here)

    def read_in_tower(self, here: Presence) -> Tensor:
        reading = here.reading(self)
        if self.queries != "all":
            paid = here.own_rows(reading, self.queries).mean(-1)  # (N, R), zeros where a sample has fewer
            there = (reading.queries[self.queries] >= 0).view(-1, paid.shape[1]).sum(1).clamp(min=1)
            return paid.sum(1) / there.to(paid.device)[here.sample]
        got = here.attended(reading.got(), side_by_side=False)
        if here.samples == 1 or reading.queries_of is None:
            return got
        queries = reading.queries_of  # other samples of the row pay it none
        share = queries.sum(1).repeat_interleave(here.samples) / queries.flatten().clamp(min=1)
        return got * share.to(got)[here.sample]

    def made_up(self, draw: Draw) -> Tensor:
        return draw()
