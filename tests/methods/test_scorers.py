"""Learned scores against plain loops, token by token."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

import foveate
from foveate import CoViPAL, Method, RelevanceNet, Tokens, VisionSelector
from foveate.errors import UnsupportedSiteError
from foveate.handle import host_of
from foveate.methods.covipal import HIDDEN
from foveate.training.relaxed import Relaxed, Tape

ROWS: list[list[tiny.Item]] = [[3, "image", 5, "image", 2], [2, "image", 4]]


class Seen(Relaxed):
    """Keeps the tokens that the score was given."""

    def answer(self, tokens: Tokens, site: foveate.Site) -> foveate.answers.Answer:
        SEEN.append(tokens)
        return super().answer(tokens, site)


SEEN: list[Tokens] = []


def scores(family: str, method: Method) -> tuple[Tensor, Tokens, nn.ModuleDict]:
    """Scores of a batch, with the tokens that they are of and random learned parts."""
    model = tiny.model(family)
    parts = method.modules(host_of(model))
    assert parts is not None
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    tape, stage = Tape(), method.stages[0]
    SEEN.clear()
    with torch.no_grad(), foveate.compress(model, Seen.of(method, parts, stage, host_of(model), tape)):
        model(**tiny.inputs(family, ROWS))
    return tape.notes[0].score, SEEN[0], parts


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_visionselector(family: str) -> None:
    found, tokens, parts = scores(family, VisionSelector())
    expected = []
    for x in tokens.hidden.split(tokens.counts):
        products = parts["query"](x) @ parts["key"](x).T / (x.shape[1] // 2) ** 0.5
        expected.append(products.mean(1))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_covipal() -> None:
    found, tokens, parts = scores("llava", CoViPAL())
    texts, expected = tokens.text.split(tokens.text_counts), []
    for row, x in zip(tokens.spans.row, tokens.hidden.split(tokens.counts)):
        for token in x:
            seen = parts["token"](token) + parts["image"](x.mean(0)) + parts["text"](texts[row].mean(0))
            assert seen.shape == (HIDDEN,)
            expected.append(parts["head"](nn.functional.gelu(seen))[0])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    host = host_of(tiny.model("llava"))
    assert [site.layer for site in CoViPAL().lessons(host)] == [3]
    with pytest.raises(UnsupportedSiteError, match="guidance=5 leaves no decoder layer after it: give 0 to 4"):
        CoViPAL(guidance=5).lessons(host)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_relevancenet(family: str) -> None:
    """Image by image, on the attention of the first layer that its own question pays."""
    found, tokens, parts = scores(family, RelevanceNet())
    start, expected = 0, []
    for span, (n, (height, width)) in enumerate(zip(tokens.counts, tokens.spans.shape)):
        asks = tokens.text_place[tokens.spans.sample[span]] >= 0
        paid = tokens.next_rows[start : start + n][:, asks]
        maps = torch.stack([paid.mean(1), paid.amax(1)])
        grid = (maps / maps.mean(1, keepdim=True)).view(1, 2, height, width)
        for i in range(3):
            grid = parts[f"conv{i}"](grid)
            grid = grid if i == 2 else nn.functional.gelu(grid)
        expected.append(grid.flatten())
        start += n
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-4)
