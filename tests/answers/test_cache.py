"""Cache sites: when a prompt has ended, tokens leave the KV cache of a layer, and what they took is freed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import LOGITS, ROWS, chunks, close, counted, generate, held
from contract import CORE, PROPERTIES, Property, a_prompt_in_chunks_is_the_whole_prompt, keeping_everything_is_stock
from probes.snapkv import SnapKV
from refusals import refused
from stand_ins import lossless
from torch import Tensor
from transformers import DynamicCache

import foveate
from foveate import DyCoke, Host, IVCPrune, Method, QCache, Site, Stride, Tokens
from foveate.errors import ConfigError, InputError, UnsupportedCacheError, UnsupportedSiteError
from foveate.handle import host_of

PAIR = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])


@dataclass(frozen=True)
class Watched(Method):
    """In the caches of ``layers``, keep what the last word of the prompt looks at."""

    ratio: float = 0.4
    layers: tuple[int, ...] = (0, 2, 5)
    signals: tuple[Any, ...] = ("last_row",)

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("cache", layer, self.ratio, signals=self.signals) for layer in self.layers]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        if "keys" in self.signals:
            return (tokens.keys * tokens.values).flatten(1).sum(1)
        return tokens.received if "received" in self.signals else tokens.last_row.mean(1)


# -- what is done -------------------------------------------------------------------------------------------------------


def steps_by_hand(model: Any, cache: DynamicCache, words: Sequence[int], start: int) -> list[Tensor]:
    """Logits of the stock model, word by word, on a cache whose layers may differ in length."""
    found = []
    for i, word in enumerate(words):
        ids = torch.full((3, 1, 1) if model.config.model_type == "qwen2_5_vl" else (1, 1), start + i)
        out = model(input_ids=torch.tensor([[word]]), position_ids=ids, past_key_values=cache)
        found.append(out.logits[0, -1])
    return found


@PAIR
def test_a_step_sees_what_the_choice_of_a_plain_loop_leaves(family: str) -> None:
    """SnapKV written in loops over the attention of the eager stock model, its cache cut by hand."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5, "image", 4]])
    visual = tiny.visual_mask(family, batch)[0].nonzero().flatten().tolist()
    length, method = batch["input_ids"].shape[1], SnapKV(ratio=0.5, layers=(0, 1, 3, 5), window=3)
    start = int(tiny.positions(model, batch).max()) + 1 if family in tiny.PACKED else length
    with torch.no_grad():
        looked = tiny.model(family, "eager")(**batch, output_attentions=True).attentions
        cache = model(**batch).past_key_values
        kept_by_hand = []
        for layer in method.layers:
            attention, kept = looked[layer][0].mean(0), []
            for image in (visual[: len(visual) // 2], visual[len(visual) // 2 :]):
                votes = [sum(float(attention[row, j]) for row in range(length - 3, length)) for j in image]
                pooled = [max(votes[max(i - 1, 0) : i + 2]) for i in range(len(votes))]
                best = sorted(range(len(pooled)), key=lambda i: (-pooled[i], i))[: (len(pooled) + 1) // 2]
                kept.append(sorted(best))
            kept_by_hand.append(tuple(map(tuple, kept)))
            gone = {image[i] for image, few in zip(_halves(visual), kept) for i in set(range(len(image))) - set(few)}
            stay = torch.tensor([j for j in range(length) if j not in gone])
            entry = cache.layers[layer]
            entry.keys, entry.values = entry.keys[:, :, stay], entry.values[:, :, stay]
        with foveate.compress(model, method) as handle:
            ours = generate(model, batch, **LOGITS)
            report = handle.report()
        words = ours.sequences[0, length:].tolist()
        # What stock code thinks of lengths does not matter to one word without padding.
        expected = steps_by_hand(model, cache, words[:-1], start)
    assert [visit.kept for visit in report.visits] == kept_by_hand
    assert [visit.site for visit in report.visits] == ["cache 0", "cache 1", "cache 3", "cache 5"]
    for a, b in zip(ours.logits[1:], expected, strict=True):
        close(a[0], b)
    freed = sum(map(len, _halves(visual))) - sum(map(len, kept_by_hand[0]))
    assert report.kv_lengths == tuple(length + 3 - (freed if i in method.layers else 0) for i in range(tiny.LAYERS))


def _halves(visual: list[int]) -> tuple[list[int], list[int]]:
    return visual[: len(visual) // 2], visual[len(visual) // 2 :]


@PAIR
def test_the_prompt_is_that_of_the_stock_model_and_memory_is_freed(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad():
        stock = model(**batch)
        with foveate.compress(model, Watched(ratio=0.25)) as handle:
            ours = model(**batch)
            report = handle.report()
    assert torch.equal(ours.logits, stock.logits)
    for i, (entry, full) in enumerate(zip(ours.past_key_values.layers, stock.past_key_values.layers)):
        freed = i in (0, 2, 5)
        assert (entry.keys.shape[2] < full.keys.shape[2]) == freed
        assert entry.keys.untyped_storage().nbytes() == entry.keys.nbytes
        assert entry.get_seq_length() == full.get_seq_length()
        assert report.kv_lengths[i] == entry.keys.shape[2]
    assert report.kv_bytes == sum(e.keys.nbytes + e.values.nbytes for e in ours.past_key_values.layers)
    assert report.kv_bytes < report.full_kv_bytes
    assert sum(report.flops.values()) == sum(report.full_flops.values()) + report.flops["sites"]
    assert "cache 0, 2, 5   watched: " in str(report)


@pytest.mark.parametrize("layers", [(1,), ()])
@pytest.mark.parametrize("order", [1, -1])
def test_a_choice_of_a_deeper_layer_cuts_all_caches(layers: tuple[int, ...], order: int) -> None:
    """Also where another method has removed tokens before or after it; on its own side of the sum or the other."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    parts = [IVCPrune(ratio=0.5, layer=3), *([Stride(ratio=0.5, layers=layers)] if layers else [])][::order]
    with torch.no_grad(), foveate.compress(model, sum(parts[1:], start=parts[0])) as handle:
        cache = model(**batch).past_key_values
        report = handle.report()
    views = [entry.kv.view(3, torch.device("cpu")) for entry in cache.layers]
    real = [[view.index[b][slice(None) if view.valid is None else view.valid[b]] for b in range(3)] for view in views]
    for per_layer in real[1:]:
        assert all(map(torch.equal, per_layer, real[0]))
    assert len(set(report.kv_lengths)) == 1
    assert len({visit.kept for visit in report.visits if visit.method == "ivcprune"}) == 1
    assert report.layer_tokens[0] > report.layer_tokens[3] == report.kv_lengths[0]


@PAIR
def test_a_step_after_one_choice_for_all_layers_is_one_on_the_short_cache(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    length = batch["input_ids"].shape[1]
    start = int(tiny.positions(model, batch).max()) + 1 if family in tiny.PACKED else length
    with torch.no_grad():
        with foveate.compress(model, IVCPrune(ratio=0.5, layer=3)):
            ours = generate(model, batch, **LOGITS)
        short, freed = DynamicCache(), length + 3 - ours.past_key_values.layers[0].keys.shape[2]
        for i, entry in enumerate(ours.past_key_values.layers):
            short.update(entry.keys[:, :, : length - freed], entry.values[:, :, : length - freed], i)
        for a, b in zip(ours.logits[1:], steps_by_hand(model, short, ours.sequences[0, length:-1].tolist(), start)):
            close(a[0], b)


# -- the properties of every method --------------------------------------------------------------------------------------


@PAIR
@pytest.mark.parametrize(
    "check", [each for each in PROPERTIES if each.__name__ != "a_prompt_in_chunks_is_the_whole_prompt"]
)
def test_contract(family: str, check: Property) -> None:
    check(family, SnapKV(ratio=0.5, layers=(0, 2, 3)))


@PAIR
@pytest.mark.parametrize("check", CORE)
def test_a_sum_keeps_what_is_at_the_core(family: str, check: Property) -> None:
    check(family, Stride(ratio=0.6, layers=(1,)) + IVCPrune(ratio=0.5, layer=3))


@PAIR
def test_keeping_everything(family: str) -> None:
    keeping_everything_is_stock(family, SnapKV(ratio=1.0))
    keeping_everything_is_stock(family, IVCPrune(ratio=1.0))


@pytest.mark.parametrize("family", tiny.STRUCTURES)
def test_every_kind_of_family(family: str) -> None:
    """At its first layer with keys that do not slide; the answer's first word is the stock model's."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    layer = next(i for i in tiny.of_attention(family, range(tiny.LAYERS)) if not tiny.window(family, i))
    with torch.no_grad():
        stock = generate(model, batch, **LOGITS)
        with foveate.compress(model, Watched(layers=(layer,))) as handle:
            ours = generate(model, batch, **LOGITS)
            report = handle.report()
    assert torch.equal(ours.logits[0], stock.logits[0])
    assert not torch.equal(ours.logits[1], stock.logits[1])
    assert report.kv_bytes < report.full_kv_bytes
    assert [visit.site for visit in report.visits] == [f"cache {layer}"]


# -- prompts in several forwards -----------------------------------------------------------------------------------------


@chunks
@PAIR
@pytest.mark.parametrize("chunk", [5, 11])
@pytest.mark.parametrize("signal", ["last_row", "keys"])
def test_chunks_act_when_the_prompt_has_ended(family: str, chunk: int, signal: str) -> None:
    """So that it is the whole prompt: words, choice and memory."""
    signals = ("keys", "values") if signal == "keys" else (signal,)
    model, batch, method = tiny.model(family), tiny.inputs(family, ROWS[family]), Watched(signals=signals)
    with torch.no_grad(), foveate.compress(model, method) as handle:
        whole = generate(model, batch, **LOGITS)
        expected = handle.report()
        cut = generate(model, batch, prefill_chunk_size=chunk, **LOGITS)
        report = handle.report()
    assert [visit.kept for visit in report.visits] == [visit.kept for visit in expected.visits]
    assert report.kv_lengths == expected.kv_lengths
    for a, b in zip(whole.logits, cut.logits, strict=True):
        close(a, b)


@chunks
@pytest.mark.parametrize("signal", ["received", "text_rows"])
def test_attention_of_the_whole_prompt_is_not_known_in_chunks(signal: str) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1])
    method = SnapKV() if signal == "text_rows" else Watched(signals=(signal,))
    with torch.no_grad(), foveate.compress(model, method):
        generate(model, batch)
        with pytest.raises(InputError, match=f"wants {signal} at cache 0, .* comes in chunks"):
            generate(model, batch, prefill_chunk_size=11)
        generate(model, batch, prefill_chunk_size=200)


@chunks
def test_a_choice_for_all_caches_in_chunks() -> None:
    a_prompt_in_chunks_is_the_whole_prompt("llava", IVCPrune(ratio=0.5, layer=2))


@PAIR
def test_a_later_turn_cuts_what_it_brings(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    length, visual = batch["input_ids"].shape[1], int(tiny.visual_mask(family, batch).sum())
    again = {**batch, "attention_mask": torch.ones(1, 2 * length, dtype=torch.long)}
    if family in tiny.PACKED:
        again["position_ids"] = tiny.positions(model, batch) + length
    with torch.no_grad(), foveate.compress(model, Watched(ratio=0.5, layers=(1,))) as handle:
        cache = model(**batch).past_key_values
        first = cache.layers[1].keys.clone()
        model(**again, past_key_values=cache)
        second = handle.report()
    half = (visual + 1) // 2
    assert torch.equal(cache.layers[1].keys[:, :, : first.shape[2]], first)
    assert [sum(visit.before) for visit in second.visits] == [visual]
    assert cache.layers[1].keys.shape[2] == 2 * (length - visual + half)
    assert cache.layers[0].keys.shape[2] == 2 * length


def test_a_copied_and_cropped_cache_goes_on() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1])
    step = dict(input_ids=torch.tensor([[20]]))
    with torch.no_grad(), foveate.compress(model, SnapKV(ratio=0.3)):
        cache = model(**batch).past_key_values
        copy = deepcopy(cache)
        expected = model(**step, past_key_values=cache).logits
        assert torch.equal(model(**step, past_key_values=copy).logits, expected)
        copy.crop(-1)
        assert torch.equal(model(**step, past_key_values=copy).logits, expected)
    with torch.no_grad(), foveate.compress(model, Watched(signals=("keys", "values"))):
        assert torch.equal(generate(model, batch, prompt_lookup_num_tokens=2), generate(model, batch))


# -- the report ---------------------------------------------------------------------------------------------------------


def test_padding_leaves_with_the_first_token() -> None:
    """A batch takes no more than its longest row."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    lengths = [int(mask.sum()) for mask in batch["attention_mask"]]
    visual = [int(mask.sum()) for mask in tiny.visual_mask("llava", batch)]
    with torch.no_grad(), foveate.compress(model, Watched(ratio=0.0, layers=(1,))) as handle:
        cache = model(**batch).past_key_values
        compressed = counted("sdpa", lambda: model(**batch))
        report = handle.report()
    assert report.kv_lengths[1] == max(n - v for n, v in zip(lengths, visual))
    assert held(cache.layers[1]) == lengths[0] - visual[0]
    assert sum(report.flops.values()) == compressed


# -- what cannot be -----------------------------------------------------------------------------------------------------


def test_without_a_cache_it_does_nothing_and_says_so() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1])
    with torch.no_grad():
        stock = generate(model, batch, use_cache=False)
        with foveate.compress(model, SnapKV(ratio=0.3)), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert torch.equal(generate(model, batch, use_cache=False), stock)
    said = [str(warning.message) for warning in caught if "use_cache=False" in str(warning.message)]
    assert len(said) == 1
    assert said[0].startswith("snapkv acts on the KV cache")


@pytest.mark.parametrize(
    ("family", "method", "sentence"),
    [
        ("gemma3", Watched(layers=(0,)), "cache 0 is a sliding layer, which forgets by itself"),
        ("qwen3_5", Watched(layers=(0,)), "carries a state and has no keys to free: in this model use layer"),
        ("llava", Watched(layers=(99,)), "no cache layer 99: the model has 6 decoder layers"),
        (
            "llava",
            Watched(signals=("residual",)),
            "cannot give residual, only keys, last_row, received, text_rows, values",
        ),
        ("llava", DyCoke(ratio=1.0, layer=3) + Watched(), "hold different tokens: use one of the two"),
        (
            "llava",
            QCache(layers=(2, 3)) + Watched(layers=(1,)),
            "whose keys qcache shares between two layers",
        ),
        (
            "llava",
            QCache(layers=(2, 3), tokens="visual") + Watched(layers=(1,)),
            "whose keys qcache shares between two layers",
        ),
    ],
)
def test_refused(family: str, method: Method, sentence: str) -> None:
    refused(tiny.model(family), method, UnsupportedSiteError, sentence)


def test_a_cache_with_keys_of_its_own_is_cut_though_a_layer_reuses() -> None:
    """Layers that reuse queries alone hold all of their keys: what leaves one cache stays in the other. In a batch every row is
    what it is alone, and words follow."""
    model, rows = tiny.model("llava"), ROWS["llava"]
    method = QCache(layers=(2, 3), of="q") + Watched(layers=(1, 3))
    found = []
    with torch.no_grad(), foveate.compress(model, method) as handle:
        for only in (None, 0):
            batch = tiny.inputs("llava", rows, only=only)
            found.append(generate(model, batch, output_logits=True, return_dict_in_generate=True))
        assert sorted(set(handle.report().kv_lengths)) == [
            min(handle.report().kv_lengths),
            max(handle.report().kv_lengths),
        ]
        assert [i for i, n in enumerate(handle.report().kv_lengths) if n < max(handle.report().kv_lengths)] == [1, 3]
    for whole, alone in zip(found[0].logits, found[1].logits):
        close(whole[:1], alone)


def test_decode_sites_below_the_cut_layers_go_on() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    with torch.no_grad(), foveate.compress(model, DyCoke(ratio=1.0, layer=4) + Watched(layers=(1, 2))):
        generate(model, batch)


def test_no_schedule_over_caches() -> None:
    with pytest.raises(ConfigError, match="say `keep` at each"):
        Site.cascade("cache", [(1, 0.5), (2, 0.2)])


def test_a_quantised_cache() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1])
    with (
        torch.no_grad(),
        foveate.compress(model, Watched()),
        pytest.raises(UnsupportedCacheError, match="a quantised cache"),
    ):
        generate(model, batch, past_key_values=lossless())


def test_a_static_cache() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1])
    with torch.no_grad(), foveate.compress(model, Watched()), pytest.raises(UnsupportedCacheError, match="StaticLayer"):
        generate(model, batch, cache_implementation="static")


def test_an_engine_refuses_it() -> None:
    from foveate.models import family_of
    from foveate.serving.plan import make_plan

    model = tiny.model("qwen2_5_vl")
    with pytest.raises(UnsupportedSiteError, match="acts on the KV cache when a prompt has ended"):
        make_plan(SnapKV(), host_of(model), family_of(model.config), model.config)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_layers_whose_cache_does_not_grow_are_left_out(family: str) -> None:
    """By default a method acts on all others: layers that slide forget by themselves, and those with a state have no keys."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family], only=0)
    layers = host_of(model).growing_caches
    assert 0 < len(layers) < tiny.LAYERS
    with torch.no_grad(), foveate.compress(model, SnapKV(ratio=0.5)) as handle:
        model(**batch)
        assert [visit.site for visit in handle.report().visits] == [f"cache {layer}" for layer in layers]
