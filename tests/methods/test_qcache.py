"""Q Cache: which layers are lazy, what they save, and how alike neighbouring layers attend.

What a lazy layer computes, in the prompt and while decoding, is in tests/answers/test_reuse.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import foveate
from foveate import FastV, Host, QCache, Random
from foveate.dial import attention_changes
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.ops.divergence import jensen_shannon

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]


def sources(method: QCache, layers: int) -> dict[int, int]:
    """Which layer each lazy one takes from."""
    sites = method.sites(Host("llava", 23, layers, has_cls=True))
    return {site.layer: site.reuse.source for site in sites if site.reuse is not None}


def test_blocks_are_as_equal_as_can_be() -> None:
    assert sources(QCache(ratio=0.5), 6) == {1: 0, 3: 2, 5: 4}
    assert sources(QCache(ratio=0.3), 10) == {1: 0, 2: 0, 4: 3, 5: 3, 7: 6, 8: 6, 9: 6}
    assert sources(QCache(ratio=0.0), 4) == {1: 0, 2: 0, 3: 0}
    for ratio, layers, own in ((0.5, 5, 3), (0.25, 10, 3), (0.25, 2, 1), (0.01, 6, 1), (0.99, 3, 3)):  # halves up
        assert layers - len(sources(QCache(ratio=ratio), layers)) == own
    assert sources(QCache(), 32).keys() == sources(QCache(ratio=10 / 32), 32).keys()
    assert sources(QCache(layers=(-1, 2, 3)), 8) == {2: 1, 3: 1, 7: 6}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=2, max_size=12), st.sampled_from([0.0, 0.1, 0.2]))
def test_lazy_blocks_by_loops(changes: list[float], epsilon: float) -> None:
    """A layer that attends as the one before, up to epsilon, is lazy (the paper); all of a block take from its head."""
    lazy = tuple(layer for layer in range(1, len(changes)) if changes[layer] <= epsilon)
    owner, head = {}, 0
    for layer in range(1, len(changes)):
        if changes[layer] > epsilon:
            head = layer
        owner[layer] = head
    expected = {layer: head for layer, head in owner.items() if head != layer}
    assert (sources(QCache(layers=lazy), len(changes)) if lazy else {}) == expected


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_no_lazy_layer_is_stock_and_all_save_what_the_formula_says(family: str) -> None:
    """Of L layers, n lazy ones hold half as much: n / 2L of the cache is saved, of text and visual tokens alike."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with torch.no_grad():
        stock = model(**batch).logits
        for method in (QCache(keep=1.0), QCache(ratio=1.0)):
            with foveate.compress(model, method):
                assert torch.equal(model(**batch).logits, stock)
        for lazy in (1, 3, 5):
            with foveate.compress(model, QCache(layers=tuple(range(1, lazy + 1)))) as handle:
                model(**batch)
                assert handle.report().kv_ratio == pytest.approx(1 - lazy / (2 * tiny.LAYERS))


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_keys_of_visual_tokens_alone_are_saved(family: str) -> None:
    """`keep` counts visual tokens, and gets what it asks for; of the bytes, text's keys stay."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[:1])
    with torch.no_grad(), foveate.compress(model, QCache(tokens="visual", keep=0.75)) as handle:
        cache = model(**batch).past_key_values
        report = handle.report()
    assert report.shares["cache"] == pytest.approx(0.75)
    assert report.kv_bytes == sum(entry.keys.nbytes + entry.values.nbytes for entry in cache.layers)
    n, visual = batch["input_ids"].shape[1], int(tiny.visual_mask(family, batch).sum())
    assert report.kv_ratio == pytest.approx(1 - visual / n / 4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 1000))
def test_divergence_by_loops(counts: list[int], seed: int) -> None:
    """Also of weights that are 0, and of spans without a token."""
    draw = torch.Generator().manual_seed(seed)
    p, q = (torch.rand(sum(counts), generator=draw) * (torch.rand(sum(counts), generator=draw) > 0.3) for _ in "pq")
    found, start = jensen_shannon(p, q, counts), 0
    for n, value in zip(counts, found.tolist()):
        a, b = (each[start : start + n].double().tolist() for each in (p, q))
        a, b = ([x / sum(each) if sum(each) else 0.0 for x in each] for each in (a, b))
        start += n
        expected = sum(
            x * math.log(2 * x / (x + y)) / 2 for one, other in ((a, b), (b, a)) for x, y in zip(one, other) if x
        )
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_how_alike_neighbouring_layers_attend(family: str) -> None:
    """Against the attention that an eager model returns; a layer that is a copy of the one before changes nothing."""
    model, batch = tiny.model(family, "eager", fresh=True), tiny.inputs(family, ROWS)
    layers: Any = tiny.lm(model).layers
    weights = layers[2].self_attn.state_dict()
    layers[3].self_attn.load_state_dict(weights)
    layers[3].input_layernorm.load_state_dict(layers[2].input_layernorm.state_dict())
    for part in (
        layers[2].self_attn.o_proj,
        layers[2].mlp.down_proj,
    ):  # layer 2 adds nothing, so 3 sees what it has seen
        nn.init.zeros_(part.weight)
    found = attention_changes(model, [batch, tiny.inputs(family, ROWS[:1])])
    assert len(found) == tiny.LAYERS
    assert found[0] == math.inf
    assert found[3] == pytest.approx(0, abs=1e-6)
    expected: list[list[float]] = [[] for _ in range(tiny.LAYERS)]
    for each in (batch, tiny.inputs(family, ROWS[:1])):
        with torch.no_grad():
            attention = tiny.of_attention(family, model(**each, output_attentions=True).attentions)
        for row, visual in enumerate(tiny.visual_mask(family, each)):
            rows = [layer[row].mean(0)[-1][visual].double() for layer in attention]
            rows = [x / x.sum() for x in rows]
            for layer in range(1, tiny.LAYERS):
                p, q = rows[layer - 1], rows[layer]
                mean = (p + q) / 2
                js = sum((x * (x / mean).log()).sum() for x in (p, q)) / 2
                expected[layer].append(float(js))
    for layer in range(1, tiny.LAYERS):
        assert found[layer] == pytest.approx(sum(expected[layer]) / 3, abs=1e-5)


def test_what_cannot_be() -> None:
    host = Host("llava", 23, 6, has_cls=True)
    model = tiny.model("llava")
    with pytest.raises(ConfigError, match="layers and ratio both say which layers are lazy"):
        QCache(layers=(1,), ratio=0.5)
    with pytest.raises(ConfigError, match=r"keep=0\.5 and layers="):
        QCache(layers=(1,), keep=0.5)
    with pytest.raises(ConfigError, match=r"layers=\(\) names nothing"):
        QCache(layers=())
    with pytest.raises(ConfigError, match="layer 0 has no layer before it"):
        QCache(layers=(0, 1)).sites(host)
    with pytest.raises(UnsupportedSiteError, match="there is no decoder layer 9: the model has 6"):
        QCache(layers=(9,)).sites(host)
    with pytest.raises(ConfigError, match=r"keep=0\.7 cannot be reached: 1 is the least"):
        QCache(keep=0.7, of="q").sites(host)
    with pytest.raises(UnsupportedSiteError, match="the two layers must hold the same tokens"):
        foveate.compress(model, QCache(layers=(2, 3)) + FastV(layer=2, ratio=0.5))
    with pytest.raises(UnsupportedSiteError, match="reuses already"):
        foveate.compress(model, QCache(layers=(2,)) + QCache(layers=(2, 3)))
    with foveate.compress(model, QCache(layers=(3,)) + Random(layer=2, ratio=0.5)):
        pass


def test_inputs_are_a_list_of_prompts() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with pytest.raises(ConfigError, match=r"give a list, \[inputs\]"):
        attention_changes(model, batch)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="inputs has a str: expected the arguments of the model"):
        attention_changes(model, ["what ?"])  # type: ignore[list-item]
