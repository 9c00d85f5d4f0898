"""SparseVLM, by a plain loop over what a stock model computes; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from by_loops import best, kept
from packed import tokens_at

from foveate import Host, Site, SparseVLM
from foveate.errors import ConfigError

PAIR = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
#: one image between words, of which the last ones ask about it
ROW: list[list[Any]] = [[4, "image", 6]]


@PAIR
def test_it_is_the_loop_of_its_paper(family: str) -> None:
    layer, method = 2, SparseVLM(layers=(2,), ratios=(0.4,), tau=1.0)
    batch = tiny.inputs(family, ROW)
    images = tiny.visual_mask(family, batch)[0].nonzero().flatten().tolist()
    words = range(images[-1] + 1, batch["input_ids"].shape[1])
    with torch.no_grad():
        stock = tiny.model(family, "eager")(**batch, output_attentions=True, output_hidden_states=True)
    embedded, attention = stock.hidden_states[0][0], stock.attentions[layer - 1][0].mean(0)
    about = [0.0] * len(words)
    for i in images:
        shares = torch.stack([embedded[i] @ embedded[j] for j in words]).softmax(0)
        about = [a + float(b) / len(images) for a, b in zip(about, shares, strict=True)]
    raters = [j for j, a in zip(words, about, strict=True) if a >= sum(about) / len(about)]
    assert 0 < len(raters) < len(words)
    scores = [sum(float(attention[j, i]) for j in raters) / len(raters) for i in images]
    left = int(0.4 * len(images) + 0.5)
    pruned = len(images) - left
    clusters = pruned // 10 + 1
    order = best(scores, len(images))
    again = sorted(order[left - clusters :][: pruned + clusters])
    assert (clusters > 1) == (family == "llava")
    x = {i: stock.hidden_states[layer][0, images[i]] for i in again}
    away = {i: {j: float((x[i] - x[j]).norm()) / len(x[i]) ** 0.5 for j in again} for i in again}
    dense = {i: -sum(each**2 for each in sorted(away[i].values())[:clusters]) for i in again}
    widest = max(max(row.values()) for row in away.values())
    denser = {i: [j for j in again if (dense[j], -j) > (dense[i], -i)] for i in again}
    reach = {i: min([away[i][j] for j in denser[i]], default=widest) for i in again}
    centres = sorted(again, key=lambda i: -reach[i] * 2.718281828459045 ** (dense[i] / clusters))[:clusters]
    assert kept(tiny.model(family), batch, method) == [tuple(sorted(order[: left - clusters] + centres))]


@pytest.mark.parametrize("tau", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(tau: float) -> None:
    with pytest.raises(ConfigError, match="is not a share of the pruned tokens"):
        SparseVLM(tau=tau)


def test_layers_and_counts_are_those_of_the_authors_code() -> None:
    """It drops after layers 2, 6 and 15; of 276 dropped tokens it recycles 83, in 9 clusters."""
    host = Host("llava", 23, 32, True)
    assert [site.layer for site in SparseVLM().sites(host)] == [3, 7, 16]
    tokens = tokens_at([(1, 24, 24)], 0)
    assert SparseVLM()._counts(tokens, Site.decoder(3, 309 / 576)) == ([300], [83], [9])
    tokens = tokens_at([(1, 1, 309)], 0)
    assert SparseVLM()._counts(tokens, Site.decoder(7, 207 / 309)) == ([203], [32], [4])
