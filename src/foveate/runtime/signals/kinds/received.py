"""Attention received."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Asker, Draw, Kind, Slots
from foveate.runtime.signals.reading import Reading
from foveate.signal import Signal


class Received(Kind):
    """Attention that each token receives ``(N,)``: the mean over heads and over all queries of its attention segment or sample.

    In the language model ``rows="text"`` is the mean over the text tokens only, and ``rows="question"`` over those after the
    last visual token. All rows cost ``H * Q * K * d`` products, in chunks; of fewer, as much as their rows.
    """

    name = "received"
    places = frozenset({"tower", "tower_output", "decoder", "cache"})
    rows = ("all", "text", "question")
    paged = "whole"
    in_parts = "mean"

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        if signal.rows in ("text", "question") and by.site.at.startswith("tower"):
            raise by.refuse(signal, "no text reaches the vision tower")

    def ask(self, reading: Reading, slots: Slots) -> None:
        if self.queries == "all":
            reading.received = True
        else:
            reading.queries[self.queries] = slots(self.queries)

    def read(self, here: Presence) -> Tensor:
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
