"""Oracle and anti-oracle: they know where the answer is, and so bound what any selector of tokens can do.

Which parts of an image the asked objects cover is not a signal of the model: the loop that asks the questions says it,
``with asked(evidence): model.generate(...)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.errors import FoveateError
from foveate.lab.evaluation.questions import Prompt
from foveate.method import Host, Method, Site, Unit
from foveate.ops import select
from foveate.ops.segments import offsets, segment_sum
from foveate.pruners import EntryPruner
from foveate.tokens import Reduction, Tokens

_asked: ContextVar[tuple[Tensor, ...] | None] = ContextVar("asked", default=None)


@contextmanager
def asked(evidence: Sequence[NDArray[np.float32]]) -> Iterator[None]:
    """Say which tokens the questions of the next calls are about.

    Args:
        evidence: for every image of the batch, in the order of the prompts, ``(height, width)`` of its token grid: how
            much of each token the asked objects cover, 0 to 1.
    """
    before = _asked.set(tuple(torch.tensor(cells) for cells in evidence))
    try:
        yield
    finally:
        _asked.reset(before)


def told(prompts: Sequence[Prompt]) -> AbstractContextManager[None]:
    """The same for a batch of prompts, where they are of the benchmark."""
    if any(prompt.sample is None for prompt in prompts):
        return nullcontext()
    return asked([cells for prompt in prompts for cells in prompt.evidence])


@dataclass(frozen=True)
class Oracle(EntryPruner):
    """Keep the tokens under the asked objects first, and evenly spaced others for what is left of the budget.

    A control, not a paper: no selector that sees the image before the language model does can know more. The budget is
    that of a question's images together, so evidence in one of several images may use all of it. Where the objects
    cover more than the budget, the tokens they cover most stay; a question about nothing in particular (the background,
    something absent) gets evenly spaced tokens.
    """

    control: ClassVar[bool] = True
    usual: ClassVar[float] = 0.1

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        evidence = _evidence(tokens, self)
        # The rows of the batch that have images, numbered on; ascending, as spans come in the order of the prompts.
        rows, row_of_span = torch.tensor(tokens.spans.row, dtype=torch.long).unique(return_inverse=True)
        row, n = row_of_span[tokens.segment.cpu()], len(rows)
        present = torch.bincount(row, minlength=n)
        about = torch.bincount(row[evidence > 0], minlength=n)
        budget = segment_sum(torch.tensor(tokens.budget(site.keep)), row_of_span, n)
        first = torch.minimum(about, budget)
        keep = torch.zeros(len(tokens), dtype=torch.bool)
        keep[select.top_k(evidence, present.tolist(), first.tolist())] = True
        others = (evidence == 0).nonzero().flatten()
        keep[others[select.stride((present - about).tolist(), (budget - first).tolist())]] = True
        return tokens.keep_mask(keep.to(tokens.index.device))


@dataclass(frozen=True)
class AntiOracle(Method):
    """Drop exactly the tokens under the asked objects.

    A control, not a paper: a model that still answers knows the answer from elsewhere. What it costs depends on the
    question, so it cannot be set to a budget; where nothing is asked about it drops nothing, and such questions say
    nothing about it.
    """

    control: ClassVar[bool] = True
    fixed_budget: ClassVar[bool] = False
    unit: ClassVar[Unit] = "none"

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.entry()]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask((_evidence(tokens, self) == 0).to(tokens.index.device))


def _evidence(tokens: Tokens, method: Method) -> Tensor:
    """``(N,)`` on the host: how much the asked objects cover each token."""
    evidence = _asked.get()
    if evidence is None:
        raise FoveateError(
            f"{method.name()} does not know what is asked: call the model inside `with asked(cells)`, of this module"
        )
    shapes = tuple(tuple(cells.shape) for cells in evidence)
    if shapes != tokens.spans.shape:
        raise FoveateError(
            f"{method.name()} was told the evidence of images with token grids {shapes}, but the images have "
            f"{tokens.spans.shape}"
        )
    flat = torch.cat([cells.flatten() for cells in evidence])
    start = torch.tensor(offsets(tokens.spans.sizes)[:-1], dtype=torch.long)
    return flat[start[tokens.segment.cpu()] + tokens.index.cpu()]
