"""Towers of which no token is left, in one image or in all of them: stock attention takes no empty row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import tiny
import tiny_alike
import torch
from calls import counted
from torch import Tensor

import foveate
from foveate import Host, Method, Site, Tokens
from foveate.tokens import Reduction

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4]]


@dataclass(frozen=True)
class Nothing(Method):
    """Leaves no token, and asks an attention after that how much the missing ones get."""

    where: Literal["before", "mid"] = "before"
    fixed_budget: ClassVar[bool] = False
    proportional_attention: ClassVar[bool] = True

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", 1, where=self.where), Site("tower", 3, signals=("received",))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.layer == 3:
            assert len(tokens) == 0 == len(tokens.signals["received"])
        return tokens.keep_mask(torch.zeros(len(tokens), dtype=torch.bool))


def marks(model: torch.nn.Module, batch: dict[str, Tensor]) -> int:
    with torch.no_grad():
        logits: Tensor = model(**batch).logits
    assert bool(logits.isfinite().all())
    return logits.shape[1]


@pytest.mark.parametrize("where", ["before", "mid"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "glm4v", "cosmos3_edge", "exaone4_5"])
def test_a_packed_tower_may_be_left_with_nothing(name: str, where: Literal["before", "mid"]) -> None:
    """Images are gone from the prompt, and what stands in for them in the attention is in the FLOPs."""
    if name in tiny_alike.ALIKE and name not in tiny_alike.KNOWN:
        pytest.skip("this transformers does not know it")
    if name in tiny_alike.ALIKE:
        model, batch = tiny_alike.model(name, "eager"), tiny_alike.inputs(name, ROWS)
    else:
        model, batch = tiny.model(name, "eager"), tiny.inputs(name, ROWS)
    with foveate.compress(model, Nothing(where=where)) as handle:
        ran = counted("eager", lambda: marks(model, batch))
        report = handle.report()
    assert [visit.after for visit in report.visits] == [(0, 0), (0, 0)]
    assert sum(report.flops.values()) == ran
