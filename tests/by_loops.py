"""Which tokens a method keeps, and which a plain loop would."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import foveate
from foveate import Method


def best(scores: list[float], k: int) -> list[int]:
    """The places of the ``k`` highest scores, the highest first; of equal ones the earlier."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def kept(model: Any, batch: dict[str, Tensor], method: Method) -> list[tuple[int, ...]]:
    """Of the first image, what is left after each site."""
    with torch.no_grad(), foveate.compress(model, method) as handle:
        model(**batch)
        return [visit.kept[0] for visit in handle.report().visits]
