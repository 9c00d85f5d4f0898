"""What a call holds at once: no more in the first call than in others, and no more for signals than is set aside."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate import IPCV, OIM, Method
from foveate.lab.bench import shapes
from foveate.lab.bench.memory import LiveTensors
from foveate.lab.bench.workload import Shaped
from foveate.runtime.signals import pattern

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", [OIM(), IPCV()], ids=lambda method: method.name())
def test_first_call_holds_no_more_than_others(method: Method) -> None:
    """The first one checks what the family says of the tower, for which it must not hold what all blocks put out."""
    config = shapes.qwen2_5_small(64, 1, tower=64, blocks=16, head=16)
    model = shapes.build(config, torch.float32, CPU, None, seed=0)
    inputs = Shaped(config).inputs(Shaped(config).layout(64), 1, 0)
    peaks = []
    with foveate.compress(model, method), torch.inference_mode():
        for _ in range(2):
            with LiveTensors([*model.parameters(), *model.buffers(), *inputs.values()]) as live:
                model(**inputs)
            peaks.append(live.peak)
    first, second = peaks
    assert first <= 1.1 * second


def test_received_attention_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 4, 50, 8), torch.randn(2, 2, 60, 8)
    valid = torch.rand(2, 50) > 0.3
    how, every = pattern.Pattern(8**-0.5), torch.arange(50).expand(2, -1)
    rows = pattern.attention(query, key, None, how, every).mean(1)
    expected = (rows * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
    held = 7 * 2 * 4 * 60  # of seven queries at once
    monkeypatch.setattr(pattern, "_HELD", held)
    with torch.no_grad(), LiveTensors([query, key, valid]) as live:
        found = pattern.received(query, key, None, how, valid)
    torch.testing.assert_close(found, expected)
    assert live.peak < 3.5 * 4 * held, "attention weights, and what they become, of the queries of a part"


def test_gradients_reach_queries_through_the_sum_in_parts() -> None:
    query, key = torch.randn(1, 2, 9, 4, requires_grad=True), torch.randn(1, 2, 9, 4)
    mask = torch.zeros(1, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    got = pattern.received(query, key, mask, pattern.Pattern(0.5), None)
    plain = ((query @ key.mT) * 0.5 + mask).softmax(-1).mean((1, 2))
    torch.testing.assert_close(got, plain)
    weight = torch.randn(1, 9)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), query)[0] for x in (got, plain))
    torch.testing.assert_close(ours, theirs)
