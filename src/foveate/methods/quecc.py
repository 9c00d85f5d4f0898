"""QueCC: a question-aware resampler, each of whose queries reads one window of an image on several levels of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from foveate.learning import Stage, keep_all
from foveate.losses import Answer
from foveate.method import Host, Paper, Site
from foveate.ops.grid import windows
from foveate.ops.segments import offsets, segment_mean, segment_softmax, segment_sum
from foveate.pruners import EntryPruner
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

HEADS, SIDE = 8, 4
LEVELS = (12, 16, 22)  # of CLIP's blocks, those whose input is read


@dataclass(frozen=True)
class QueCC(EntryPruner):
    """Where image and text meet, one token for each window of an image, made for the question.

    From the paper and the authors' code: the question is the language model's last state of its last token, in one more pass
    over the text alone; it is added to all tokens of the image, of which a perceptron and a depth-wise convolution as large as
    a window make one query; the query attends, with 8 heads, to its own window, whose keys and values are perceptrons of
    several levels of the tower; windows of 4x4 by default, 36 tokens of 576; trained for the answer alone, first the module,
    then the language model as well; a learning rate of 1e-3 for the first. Ours: it acts behind the projector, and what the
    attention says is added to the mean of the window, so that training begins at a smaller image; of the four levels that
    the code reads, those before the last, which is what the projector has read; windows of any size, with ``keep``, where a
    token takes the weight of the kernel's cell that it is in; LoRA in the second stage, at LLaVA-1.5's learning rate for it; of
    an image of which tokens have left before, windows are runs of what is left.
    """

    usual: ClassVar[float] = 1 / 16
    training_free: ClassVar[bool] = False
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage((Answer(),), lr=1e-3),
        Stage((Answer(),), lr=2e-4, trains=("parts", "lora")),
    )
    paper: ClassVar[Paper] = Paper(
        "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters",
        "ICLR",
        2025,
        "2411.03312",
        "locuslab/llava-token-compression",
    )

    def sites(self, host: Host) -> Sequence[Site]:
        levels = dict.fromkeys(round(level * (host.blocks - 1) / LEVELS[-1]) for level in LEVELS)
        read = [Signal("hidden", level, at="tower") for level in levels]
        return [Site.entry(self.share, signals=("text_pass", *read))]

    def modules(self, host: Host) -> nn.ModuleDict:
        inner = HEADS * max(1, min(host.width, host.tower_width) // HEADS)
        levels = len(self.sites(host)[0].asked) - 1

        def perceptron(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner), nn.LayerNorm(inner))

        parts = nn.ModuleDict({name: perceptron(levels * host.tower_width) for name in ("key", "value")})
        parts["text"] = nn.Sequential(nn.Linear(host.width, inner), nn.LayerNorm(inner))
        parts["token"], parts["query"] = nn.Linear(host.width, inner), perceptron(inner)
        kernel, out = nn.Embedding(SIDE * SIDE, inner), nn.Linear(inner, host.width)
        nn.init.ones_(kernel.weight)
        nn.init.normal_(out.weight, std=1e-3)
        nn.init.zeros_(out.bias)
        parts["kernel"], parts["out"] = kernel, out
        return parts

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.keep == 1:
            return keep_all(tokens)
        counts = tokens.budget(site)
        parts: Any = self.learned
        cell, place = windows(tokens.index, tokens.counts, tokens.spans.shape, counts, SIDE)
        k, n = sum(counts), sum(counts) + 1  # tokens of an image that keeps none are in a window of no use
        first = torch.full((n,), len(tokens), device=cell.device)
        keep = first.scatter_reduce(0, cell, torch.arange(len(tokens), device=cell.device), "amin")[:k]
        merged = tokens.merge_into(keep, counts, cell, "mean")
        text = torch.nn.functional.pad(
            tokens.text_pass, (0, 0, 0, 1)
        )  # a chunk of a prompt may have none: it asks nothing
        ends = zip(tokens.text_counts, offsets(tokens.text_counts)[1:])
        last = torch.tensor([end - 1 if n else len(text) - 1 for n, end in ends]).to(cell.device, non_blocking=True)
        question = text[last].to(tokens.hidden.dtype)
        x = parts["query"](parts["token"](tokens.hidden) + parts["text"](question)[tokens.sample])
        query = segment_mean(x * parts["kernel"](place), cell, n)
        read = torch.cat([tokens.signal(each) for each in site.asked if each.at == "tower"], 1).to(x.dtype)
        key, value = (parts[name](read).view(len(tokens), HEADS, -1) for name in ("key", "value"))
        logits = (query.view(n, HEADS, -1)[cell] * key).sum(-1).float() / key.shape[-1] ** 0.5
        paid = segment_softmax(logits, cell, n).to(value.dtype)
        said = segment_sum(paid[..., None] * value, cell, n).flatten(1)
        assert merged.hidden is not None
        return replace(merged, hidden=merged.hidden + parts["out"](said[:k]))

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.keep == 1:
            return 0
        parts: Any = self.learned
        inner, width, read = parts["out"].in_features, parts["out"].out_features, parts["key"][0].in_features
        per_token = width * inner + 2 * inner * inner + 2 * (read * inner + inner * inner)
        kept = sum(tokens.budget(site))
        return 2 * int(len(tokens) * per_token + len(tokens.text_counts) * width * inner + kept * inner * width)
