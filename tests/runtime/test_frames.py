"""Which frames are of one video: known where the family says so, and a method that compares them is refused elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch
from calls import video_rows

import foveate
from foveate import Host, Method, Reduction, Site, Tokens
from foveate.handle import host_of
from foveate.tokens import Spans


@dataclass(frozen=True)
class Looks(Method):
    """Keeps everything, and remembers the spans."""

    at: Any = "tower"
    seen: ClassVar[list[Spans]] = []

    def sites(self, host: Host) -> Any:
        return [Site(self.at, {"tower": 1, "decoder": 1, "decode": 2}.get(self.at, 0))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        self.seen.append(tokens.spans)
        shape = tokens.spans.shape if site.at == "pixels" else None
        return Reduction(torch.arange(len(tokens)), tokens.counts, shape=shape)


class Compares(Looks):
    temporal = True


@pytest.mark.parametrize("at", ["pixels", "tower", "tower_output", "lm_entry", "decoder", "decode"])
def test_where_frames_are_known(family: str, at: str) -> None:
    """As the family says: there frames of a video share a clip; elsewhere a method that compares them is refused."""
    model, host = tiny.model(family), host_of(tiny.model(family))
    if at not in host.frames | {"decode"}:
        with pytest.raises(foveate.FoveateError, match=r"compares frames of one video|one size|sliding ones"):
            foveate.compress(model, Compares(at=at))
    if family not in tiny.VIDEO or (at == "decode" and family in tiny.gemma4.FAMILIES):
        assert not host.frames
        return
    Looks.seen.clear()
    with torch.no_grad(), foveate.compress(model, (Compares if at in host.frames else Looks)(at=at)):
        model.generate(**tiny.inputs(family, video_rows(family)), max_new_tokens=2)
    spans = [each for each in Looks.seen if len(each)]
    assert spans
    assert any(max(each.frame) > 0 for each in spans) == (at in host.frames)  # (images have calls of their own)
    assert any(len(set(each.clip)) < len(each) for each in spans) == (at in host.frames)
