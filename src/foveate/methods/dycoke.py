"""DyCoke: frames keep what differs from an earlier one, and each generated token attends to the tokens that matter now."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.lasting import Lasting
from foveate.method import Host, Method, Paper, Site
from foveate.ops import frames, select
from foveate.pruners import from_the_start
from foveate.schedule import COSINE, check_ratio, check_within, spread, survivors
from foveate.tokens import Reduction, Tokens

BACK = (0, 1, 2, 1)  # how far before a frame of a window is the one that it is compared with; the first has none


@dataclass(frozen=True)
class DyCoke(Method):
    """Drop what frames of a video repeat, before the language model; while decoding, attend to the tokens that are looked at.

    From the paper: of four frames the first stays whole, the third is compared with it, the second and fourth with the one
    before, place by place, and the least similar tokens stay (section 3.2); a step of decoding sees, from layer 3 on, the 30 %
    that the layer before attends to, chosen anew where that attention has turned (cosine below 0.9; section 3.3). From the
    authors' code: 30 % of the three frames stay (K=P=0.7 in the README; the loader's defaults 0.3 and 0.8 leave 70 and
    20 %), none is merged, hidden keys stay, frames share a ranking. Ours: a last window is cut like others, no frame
    is lost, four or fewer do not fail (see ``exact``); nearest counts; raster order, positions as they were; if attention has
    not turned the last choice stays (the code shows all). An image, a video of one frame, stays whole; where ``keep`` is too
    little for that, first frames are thinned evenly. Without known frames, decoding is reduced alone by default.

    Attributes:
        ratio: share of the second to fourth frame of a window that stays; by default 0.3; of 1 there is no such stage.
        decode_ratio: share of the visual tokens of an image or video that a step sees; by default 0.3; of 1 all.
        layer: first decoder layer that sees less; the attention of the one before it chooses. By default 3, or the last one.
        threshold: cosine between two steps' attention below which the choice is made anew.
        exact: as the authors' code, leave the third frame of a last window whole, drop a last odd one, round counts down.
    """

    ratio: float | None = None
    decode_ratio: float | None = None
    layer: int | None = None
    threshold: float = 0.9
    exact: bool = False

    how_much: ClassVar[tuple[str, ...]] = ("ratio",)
    served_with: ClassVar[str] = "ratio=0.3 and decode_ratio=1.0"
    paper: ClassVar[Paper] = Paper(
        "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models",
        "CVPR",
        2025,
        "2411.15024",
        "KD-TAO/DyCoke",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(COSINE, threshold=self.threshold)
        check_ratio("decode_ratio", self.decode_ratio or 0.0)
        if self.exact and self.keep is not None:
            raise ConfigError(f"dycoke: exact=True has counts of its own, not keep={self.keep:.4g}: give ratio")

    @property
    def temporal(self) -> bool:
        return self.ratio != 1

    def sites(self, host: Host) -> Sequence[Site]:
        asked = self.keep is not None or self.ratio not in (None, 1)
        ratio, decode_ratio = (0.3 if each is None else each for each in (self.ratio, self.decode_ratio))
        share = (1 + 3 * ratio) / 4 if self.keep is None else self.keep
        found = [Site.entry(share)] if asked or (self.temporal and "lm_entry" in host.frames) else []
        if decode_ratio < 1 or not found:
            layer = min(3, host.layers - 1) if self.layer is None else from_the_start(self.layer, host)
            found.append(Site.decode(layer, decode_ratio, signals=("last_row",)))
        return found

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return self._attended(tokens, site) if site.at == "decode" else self._changed(tokens, site)

    def _changed(self, tokens: Tokens, site: Site) -> Reduction:
        kept, before = list(tokens.budget(site)), [-1] * len(tokens.counts)
        for clip in tokens.spans.clips:
            of_clip = self._kept([tokens.counts[span] for span in clip], sum(kept[span] for span in clip))
            for place, (span, n) in enumerate(zip(clip, of_clip)):
                kept[span], before[span] = n, clip[place - BACK[place % 4]] if place % 4 else -1
        other = frames.same_cell(tokens.index, tokens.counts, tokens.spans.sizes, before)
        score = -frames.cosine_with(tokens.hidden, other, missing=-1.0)
        spaced = torch.zeros_like(score).index_fill(0, select.stride(tokens.counts, kept, score.device), 1.0)
        first = torch.tensor([each < 0 for each in before]).to(score.device, non_blocking=True)[tokens.segment]
        return Reduction(select.top_k(torch.where(first, spaced, score), tokens.counts, kept), tuple(kept))

    def _kept(self, counts: list[int], budget: int) -> list[int]:
        """Count survivors of each frame of a video; of all ``budget``, if there is a `keep`."""
        ratio = 0.3 if self.ratio is None else self.ratio
        if self.exact and len(counts) > 4:
            even, share = len(counts) // 2 * 2, 1 - (1 - ratio)  # as the code rounds it
            whole = [place % 4 == 0 or (place % 4 == 2 and place >= len(counts) - 2) for place in range(even)]
            return [n if stays else int(share * n) for n, stays in zip(counts, whole)] + [0] * (len(counts) - even)
        first, others = ([n * (bool(place % 4) == late) for place, n in enumerate(counts)] for late in (False, True))
        if self.keep is None:
            budget = sum(first) + survivors(sum(others), ratio, least=0)
        whole_ones = spread(min(budget, sum(first)), first, first)
        return [a + b for a, b in zip(whole_ones, spread(budget - sum(whole_ones), others, others))]

    def _attended(self, tokens: Tokens, site: Site) -> Reduction:
        attention, last = tokens.last_row.float().mean(-1), tokens.state.get("choice")
        choice = Lasting.after(last, tokens, attention, tokens.pool_budget(site), self.threshold)
        tokens.state["choice"] = choice
        return choice.reduction

    def follow(self, state: MutableMapping[str, Any], rows: Tensor | None) -> None:
        last = state.pop("choice", None)
        if rows is not None and last is not None:
            state["choice"] = last.of_rows(rows.tolist())
