"""VidCom2: frames that are unlike the rest of a video keep more tokens, and in each the tokens that are unlike the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.method import Paper, Site
from foveate.ops import select
from foveate.ops.segments import normalise, padded_index, segment_ids, segment_mean, to_padded
from foveate.pruners import EntryPruner
from foveate.tokens import Reduction, Tokens

#: widths of the Gaussians whose sum says how near a token is to a centre
WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
#: of the softmax over the frames of a video
TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(EntryPruner):
    """Where image and text meet, keep the tokens farthest from the centres of their frame and video, more of rare frames.

    From the paper: a frame is unique if its tokens are far from the mean token of the video, and unique frames keep more; a
    token is unique if it is far from the means of its frame and of the video. From the authors' code: the half of the
    channels with the least variance in the video, to unit length; nearness is a sum of Gaussians of five widths; the share
    of a frame is ``keep (1 + p - mean p)``, p the softmax over frames at a temperature of 0.01, at most 1, and of each at
    least one token; a quarter stays. Ours: the counts of a video add up to its budget, by cumulative rounding, and what a
    full frame cannot use goes to the most unique tokens of the others; an image is a video of one frame, as is each frame
    where a family does not say which are of one video. There is no ``threshold``: what is rare decides how a video's budget
    is spread over its frames, not how large it is.
    """

    usual: ClassVar[float] = 0.25
    pooled: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
        "EMNLP",
        2025,
        "2505.14454",
        "xuyang-liu16/VidCom2",
    )

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept, videos, counts, segment = tokens.pool_budget(site), tokens.pool_counts, tokens.counts, tokens.segment
        frames_of = [len(pool) for pool in tokens.pools]
        video, device = segment_ids(videos, segment.device), segment.device
        unit = self._quiet(tokens, video, len(videos))
        near_video = _nearness(unit, video, len(videos))
        rare = -(near_video + _nearness(unit, segment, len(counts)))
        of = segment_ids(frames_of, device)
        far = -segment_mean(near_video, segment, len(counts))
        p = normalise(far / TEMPERATURE, frames_of, "softmax")
        share = 1 + p - segment_mean(p, of, len(videos))[of]
        facts = torch.tensor([kept, [max(n, 1) for n in videos]], dtype=torch.float32)
        budget, whole = (each[of] for each in facts.to(device, non_blocking=True))
        n = torch.tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
        wanted = torch.minimum(budget / whole * share * n, n)
        end = to_padded(wanted, frames_of).cumsum(1).round()
        quota = (end - torch.nn.functional.pad(end, (1, -1))).flatten()[padded_index(frames_of, device)].clamp(min=1)
        place = select.rank_within(rare, videos)
        chosen = select.rank_within(rare, counts) < quota[segment]
        keep = select.top_k(len(tokens) * chosen.long() - place, videos, kept)
        return tokens.keep_pooled(keep, kept)

    def _quiet(self, tokens: Tokens, video: Tensor, n_videos: int) -> Tensor:
        """The half of the channels with the least variance in each video, others 0, to unit length: ``(N, C)``."""
        x = tokens.hidden.float()
        apart = x - segment_mean(x, video, n_videos)[video]
        variance = segment_mean(apart.square(), video, n_videos)
        rank = variance.argsort(dim=1, stable=True).argsort(dim=1)
        return normalize(x * (rank < x.shape[1] // 2)[video], dim=-1)


def _nearness(unit: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """How near each token is to the mean of its group, by Gaussians of all widths: ``(N,)``."""
    away = (unit - segment_mean(unit, group, n_groups)[group]).square().sum(-1)
    return torch.stack([torch.exp(-away / (2 * width)) for width in WIDTHS]).sum(0)
