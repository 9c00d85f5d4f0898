"""Layers that reuse the queries and keys of an earlier one: what they compute, hold and cost, and where they cannot."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny
import torch
from calls import HOOKS_AROUND_CHECKPOINTS, close, generate
from contract import PROPERTIES, Property
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import foveate
from foveate import Host, Method, QCache, Reuse, Signal, Site
from foveate.answers import Sight
from foveate.errors import ConfigError, UnsupportedCacheError, UnsupportedSiteError
from foveate.lab.story import tell
from foveate.models import family_of
from foveate.ops.select import stride
from foveate.runtime.lent import Lent
from foveate.serving.plan import make_plan
from foveate.tokens import Reduction, Tokens

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]
WITH_TEXT: list[list[tiny.Item]] = [*ROWS, [6]]
KINDS = [(of, tokens) for of in ("qk", "q") for tokens in ("visual", "all")]
kinds = pytest.mark.parametrize(("of", "tokens"), KINDS)


#: layers that reuse: 2 what layer 1 has, 4 and 5 what layer 3 has
LAZY = (2, 4, 5)


def source_of(method: QCache) -> dict[int, Reuse]:
    return {site.layer: site.reuse for site in method.sites(Host("", 0, tiny.LAYERS, False)) if site.reuse is not None}


@contextmanager
def by_hand(model: Any, method: QCache, taken: Tensor) -> Iterator[None]:
    """The stock model, whose attention function swaps queries and keys of the tokens ``taken (B, L)`` itself."""
    reuses, seen = source_of(method), dict[int, tuple[Tensor, Tensor]]()
    numbers = {id(layer.self_attn): i for i, layer in enumerate(tiny.lm(model).layers)}
    mask = taken[:, None, :, None]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        i = numbers.get(id(module))
        if i in reuses:
            q, k = seen[reuses[i].source]
            query = torch.where(mask, q, query)
            key = torch.where(mask, k, key) if reuses[i].of == "qk" else key
        if i is not None:
            seen[i] = query, key
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", sdpa_mask)
    model.set_attn_implementation("by_hand")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


# -- what it computes ---------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_is_attention_with_other_queries_and_keys(family: str, of: Any, tokens: Any) -> None:
    """Of a padded batch of which a row is text alone; eager attention says the same."""
    method, batch = QCache(layers=LAZY, of=of, tokens=tokens), tiny.inputs(family, WITH_TEXT)
    visual = tiny.visual_mask(family, batch)
    taken = visual if tokens == "visual" else visual.any(1, keepdim=True).expand_as(visual)
    real, model = batch["attention_mask"].bool(), tiny.model(family, fresh=True)
    with torch.no_grad():
        stock = model(**batch, use_cache=False).logits[real]
        with by_hand(model, method, taken):
            expected = model(**batch, use_cache=False).logits[real]
        assert (stock - expected).abs().max() > 1e-2
        for impl in ("sdpa", "eager"):
            other = tiny.model(family, impl)
            with foveate.compress(other, method):
                close(other(**batch).logits[real], expected)
                close(other(**batch, use_cache=False).logits[real], expected)


@kinds
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_gradients_are_those_of_the_layer_by_hand(family: str, of: Any, tokens: Any) -> None:
    method, batch = QCache(layers=LAZY, of=of, tokens=tokens), tiny.inputs(family, ROWS, padding_side="right")
    visual = tiny.visual_mask(family, batch)
    labels = batch["input_ids"].masked_fill(visual | ~batch["attention_mask"].bool(), -100)
    model = tiny.model(family, fresh=True).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**batch, labels=labels, use_cache=False).loss.backward()
        return {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())
        }

    with by_hand(model, method, visual if tokens == "visual" else torch.ones_like(visual)):
        expected = gradients()
    with foveate.compress(model, method):
        found = gradients()
        if not HOOKS_AROUND_CHECKPOINTS:
            return
        tiny.lm(model).layers[2].gradient_checkpointing = True
        with pytest.raises(UnsupportedSiteError, match="gradient checkpointing cannot replay"):
            gradients()
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("family", tiny.STRUCTURES)
@pytest.mark.parametrize("tokens", ["visual", "all"])
def test_other_families(family: str, tokens: Any) -> None:
    """Cached steps are full forwards, and the report counts what ran, whatever the layers are."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[:1])
    types = getattr(model.config.get_text_config(), "layer_types", None) or ["full"] * tiny.LAYERS
    last = max(i for i in range(tiny.LAYERS) if "linear" not in types[i])
    source = max(i for i in range(last) if types[i] == types[last])
    sites = [Site("decoder", last, action="reuse", reuse=Reuse(source, tokens=tokens))]
    with torch.no_grad(), foveate.compress(model, Fixed(sites)) as handle:
        out: Any = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        assert handle.report().kv_ratio < 1 or (tokens == "visual" and types[last] == "sliding_attention")
        full = model(**tiny.longer(family, batch, out.sequences)).logits
    for step in range(4):
        close(full[:, batch["input_ids"].shape[1] - 1 + step], out.logits[step])


@dataclass(frozen=True)
class Fixed(Method):
    """The sites that a test says."""

    told: Any = ()

    def sites(self, host: Host) -> Sequence[Site]:
        return list(self.told)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site)
        return Reduction(stride(tokens.counts, counts), counts)


# -- the cache ----------------------------------------------------------------------------------------------------------


def test_an_entry_of_all_tokens_holds_values_only() -> None:
    """Through beams, copies on disk, cropping and further words; a batch with a row of text keeps keys."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    method = QCache(layers=LAZY, tokens="all")
    with torch.no_grad(), foveate.compress(model, method) as handle:
        cache: Any = model(**batch).past_key_values
        report, n = handle.report(), batch["input_ids"].shape[1]
        for i, entry in enumerate(cache.layers):
            assert entry.get_seq_length() == entry.values.shape[-2] == n
            assert entry.keys.shape[-1] == (0 if i in (2, 4, 5) else entry.values.shape[-1])
        assert report.kv_bytes == sum(entry.keys.nbytes + entry.values.nbytes for entry in cache.layers)
        assert report.full_kv_bytes == 2 * sum(entry.values.nbytes for entry in cache.layers)
        file = io.BytesIO()
        torch.save(cache, file)
        file.seek(0)
        word = dict(input_ids=torch.full((2, 1), 40), attention_mask=torch.ones(2, n + 1, dtype=torch.long))
        word["attention_mask"][:, :n] = batch["attention_mask"]
        expected = model(**word, past_key_values=deepcopy(cache)).logits
        close(model(**word, past_key_values=torch.load(file, weights_only=False)).logits, expected)
        assert not torch.equal(expected[0], expected[1])
        turned = deepcopy(cache)
        turned.reorder_cache(torch.tensor([1, 0]))
        other = {**word, "attention_mask": word["attention_mask"].flip(0)}
        close(model(**other, past_key_values=turned).logits.flip(0), expected)
        model(**word, past_key_values=cache)
        cache.crop(-1)
        close(model(**word, past_key_values=cache).logits, expected)
        mixed: Any = model(**tiny.inputs("llava", WITH_TEXT)).past_key_values
        assert all(entry.keys.shape[-1] for entry in mixed.layers)
        cache.crop(-(n + 1))  # everything
        text = tiny.inputs("llava", [[5], [5]])
        close(model(**text, past_key_values=cache).logits, model(**text).logits)
        cache = model(**batch).past_key_values
    with pytest.raises(UnsupportedCacheError, match="or no keys"):
        model(**word, past_key_values=cache)


def test_an_entry_of_visual_tokens_has_keys_of_text() -> None:
    """A batch of ragged rows, one of them text: through words, beams, copies on disk, cropping, and a choice of rows."""
    family = "llava"  # (in a direct call, Qwen2.5-VL takes positions of the mask's length)
    model, batch = tiny.model(family), tiny.inputs(family, WITH_TEXT)
    method, n = QCache(layers=LAZY, tokens="visual"), batch["input_ids"].shape[1]
    with torch.no_grad(), foveate.compress(model, method):
        cache: Any = model(**batch).past_key_values
        for i, entry in enumerate(cache.layers):
            held = entry.keys.shape[-2]
            assert entry.values.shape[-2] == n
            assert held == (n if i not in LAZY else n - int(tiny.visual_mask(family, batch).sum(1).min()))
    with torch.no_grad(), foveate.compress(model, method) as handle:
        pictures = tiny.inputs(family, ROWS)
        n, mask = pictures["input_ids"].shape[1], pictures["attention_mask"]
        visual = tiny.visual_mask(family, pictures)
        cache = model(**pictures).past_key_values
        for i, entry in enumerate(cache.layers):
            assert entry.keys.shape[-2] == (n - int(visual.sum(1).min()) if i in LAZY else n)
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        told = dict(input_ids=torch.full((2, 1), 40), attention_mask=longer)
        full = model(**tiny.longer(family, pictures, torch.cat([pictures["input_ids"], told["input_ids"]], 1)))
        expected = full.logits[:, -1:]
        close(model(**told, past_key_values=deepcopy(cache)).logits, expected)
        file = io.BytesIO()
        torch.save(cache, file)
        file.seek(0)
        close(model(**told, past_key_values=torch.load(file, weights_only=False)).logits, expected)
        model(**told, past_key_values=cache)
        report = handle.report()
        assert report.kv_bytes == sum(entry.keys.nbytes + entry.values.nbytes for entry in cache.layers)
        cache.crop(-1)
        close(model(**told, past_key_values=cache).logits, expected)
        turned = deepcopy(cache)
        turned.crop(-1)
        turned.batch_select_indices(torch.tensor([1]))
        only = {name: x[1:] for name, x in told.items()}
        close(model(**only, past_key_values=turned).logits, expected[1:])
        beams: Any = generate(model, pictures, num_beams=2)
        assert beams.shape[0] == 2
    assert cache.layers[2].lent is not None
    with pytest.raises(UnsupportedCacheError, match="or no keys"):
        model(**told, past_key_values=cache)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=4), st.integers(0, 99))
def test_keys_that_are_lent_by_loops(turns: list[list[int]], seed: int) -> None:
    """Forwards that bring so many visual tokens to each of two rows; what is spread has every own key in its place."""
    draw, lent, told = (
        torch.Generator().manual_seed(seed),
        Lent.none(2, 0, torch.device("cpu")),
        [list[float](), list[float]()],
    )
    held = torch.zeros(2, 1, 0, 1)
    for turn, counts in enumerate(turns):
        mask = torch.zeros(2, 6, dtype=torch.bool)
        for row, count in enumerate(counts):
            mask[row, torch.randperm(6, generator=draw)[:count]] = True
        keys = torch.arange(12.0).view(2, 1, 6, 1) + 100 * turn
        for row in range(2):
            told[row] += [-1.0 if m else k for m, k in zip(mask[row].tolist(), keys[row].flatten().tolist())]
        lent, take = lent.arrived(mask, min(counts))
        held = torch.cat([held, keys.gather(2, take[:, None, :, None])], 2)
        assert held.shape[2] == lent.own
        lent, word = lent.append(1), torch.full((2, 1, 1, 1), -7.0 - turn)
        held = torch.cat([held, word], 2)
        for row in range(2):
            told[row].append(-7.0 - turn)
    for length in range(len(told[0]), -1, -1):
        part = lent.up_to(length)
        spread = part.spread(held[:, :, : part.own]).masked_fill(part.mask[:, None, :, None], -1.0)
        assert spread[:, 0, :, 0].tolist() == [row[:length] for row in told]
        swapped = part.select(torch.tensor([1, 0]))
        again = swapped.spread(held.flip(0)[:, :, : part.own]).masked_fill(swapped.mask[:, None, :, None], -1.0)
        assert again[:, 0, :, 0].tolist() == [row[:length] for row in told[::-1]]


def test_what_no_cache_can_give() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    for tokens in ("visual", "all"):
        with (
            foveate.compress(model, QCache(layers=LAZY, tokens=tokens)),
            pytest.raises(UnsupportedCacheError, match="static"),
        ):
            model.generate(**batch, max_new_tokens=2, cache_implementation="static")


def test_text_before_an_image_in_a_turn_of_its_own() -> None:
    """What was said before the first image keeps its keys, alone and in a batch; the image's keys are the source's."""
    model, rows = tiny.model("llava"), [[3, "image", 5], [4, "image", 4]]
    found = []
    with torch.no_grad(), foveate.compress(model, QCache(layers=LAZY, tokens="all")):
        for only in (None, 0):
            first, batch = tiny.inputs("llava", [[4], [4]], only=only), tiny.inputs("llava", rows, only=only)
            cache = model(**first).past_key_values
            batch["attention_mask"] = torch.cat([first["attention_mask"], batch["attention_mask"]], 1)
            found.append(model(**batch, past_key_values=cache).logits[0])
            length = first["input_ids"].shape[1]
            source, layer = cache.layers[1].keys, cache.layers[2].keys
            assert torch.equal(source[:, :, length:], layer[:, :, length:])
            assert not torch.equal(source[:, :, :length], layer[:, :, :length])
    close(*found)


# -- what it costs ------------------------------------------------------------------------------------------------------


@kinds
def test_the_report_names_the_layers(of: Any, tokens: Any) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with (
        torch.no_grad(),
        foveate.compress(model, QCache(layers=LAZY, of=of, tokens=tokens)) as handle,
        handle.trace() as recorded,
    ):
        model(**batch)
        report, trace = handle.report(), recorded()
    word = "q, k" if of == "qk" else "q"
    assert [visit.site for visit in report.visits] == [
        f"decoder {i} ({word} of {s})" for i, s in ((2, 1), (4, 3), (5, 3))
    ]
    assert all(visit.before == visit.after for visit in report.visits)
    words = "queries and keys" if of == "qk" else "queries"
    assert f"decoder 2 ({word} of 1) qcache: reuses {words} of layer 1, {tokens} tokens" in str(report)
    assert [i for i, (a, b) in enumerate(zip(report.layer_flops, report.full_layer_flops)) if a < b] == [2, 4, 5]
    story = tell(trace, report)
    assert [step.name for step, acts in zip(story.steps, story.acts) if any(act.action == "reuse" for act in acts)] == [
        f"Decoder layer {i}" for i in (2, 4, 5)
    ]


# -- where it cannot be -------------------------------------------------------------------------------------------------


def site(layer: int, source: int, **how: Any) -> Site:
    return Site("decoder", layer, action="reuse", reuse=Reuse(source, **how))


def skip(layer: int) -> Site:
    return Site("decoder", layer, 0.5, action="skip", part="attention")


PARKED = [
    Site("decoder", 1, 0.5, action="park"),
    Site("decoder", 2, action="attend"),
    Site("decoder", 5, action="restore"),
]
REFUSED = {
    "later": ("llava", [site(2, 3)], "name an earlier layer"),
    "itself": ("llava", [site(2, 2)], "name an earlier layer"),
    "nowhere": ("llava", [site(2, 17)], "there is no decoder layer 17"),
    "twice": ("llava", [site(3, 2), site(3, 1, of="q")], "reuses already"),
    "cut": (
        "llava",
        [site(4, 2), Site("decoder", 3, 0.5)],
        "acts at decoder 3: the two layers must hold the same tokens",
    ),
    "skipped where it is made": ("llava", [site(4, 2), skip(2)], "lets tokens skip the attention at decoder 2"),
    "skipped where it is used": ("llava", [site(4, 2), skip(4)], "lets tokens skip the attention at decoder 4"),
    "parked": ("llava", [site(4, 2), *PARKED], "lets layer 2 attend to parked tokens"),
    "hidden": ("llava", [site(4, 2), Site("decode", 4, 0.5)], "hides tokens from decode 4 on"),
    "kinds": ("gemma3", [site(4, 3)], "of the kind full_attention and layer 3 of sliding_attention"),
    "state": ("qwen3_5", [site(5, 4)], "layer 4 carries a state"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence(case: str) -> None:
    family, sites, words = REFUSED[case]
    with pytest.raises(UnsupportedSiteError, match=words):
        foveate.compress(tiny.model(family), Fixed(sites))


def test_allowed_beside_other_cuts() -> None:
    """Before or at the source, and after the layer."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    cuts = [Site("decoder", 1, 0.5), Site("decoder", 3, 0.5)]
    for tokens in ("visual", "all"):
        with torch.no_grad(), foveate.compress(model, Fixed([*cuts, site(2, 1, tokens=tokens)])) as handle:
            model(**batch)
            assert [sum(visit.after) for visit in handle.report().visits] == [54, 54, 27]
    with foveate.compress(model, Fixed([site(4, 2), skip(3)])):
        pass


def test_other_numbers_of_heads() -> None:
    model = tiny.model("llava", fresh=True)
    attention = tiny.lm(model).layers[3].self_attn
    attention.k_proj = nn.Linear(64, 64)
    with pytest.raises(UnsupportedSiteError, match="numbers of heads or widths differ"):
        foveate.compress(model, Fixed([site(3, 2)]))
    with foveate.compress(model, Fixed([site(3, 2, of="q")])):
        pass


def test_layers_that_share_keys() -> None:
    """One without keys of its own cannot reuse, nor can one whose keys others attend to."""
    config = tiny.config("gemma4", num_kv_shared_layers=2)
    model = tiny.build(config)
    with pytest.raises(UnsupportedSiteError, match="keys of their own"):
        foveate.compress(model, Fixed([site(5, 1)]))
    with pytest.raises(UnsupportedSiteError, match="later layers attend to the keys of layer 3"):
        foveate.compress(model, Fixed([site(3, 2)]))
    with foveate.compress(model, Fixed([site(3, 2, of="q")])):
        pass


def test_a_site_says_both_or_none() -> None:
    for how in (dict(action="reuse"), dict(reuse=Reuse(1))):
        with pytest.raises(ConfigError, match="give both or none"):
            Site("decoder", 3, **how)  # type: ignore[arg-type]


def test_serving_refuses() -> None:
    config = tiny.config("qwen2_5_vl")
    host = Host("qwen2_5_vl", tiny.BLOCKS, tiny.LAYERS, has_cls=False)
    with pytest.raises(UnsupportedSiteError, match="pages of keys and values of its own"):
        make_plan(QCache(layers=LAZY), host, family_of(config), config)


# -- what holds for every method ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("tokens", ["visual", "all"])
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_properties(family: str, tokens: Any, check: Property) -> None:
    """After a cut at the layer that lends."""
    check(family, Fixed((Site("decoder", 1, 0.5),)) + QCache(layers=LAZY, tokens=tokens))


@pytest.mark.parametrize("tokens", ["visual", "all"])
def test_a_sight_is_in_force_in_a_layer_that_reuses(tokens: Any) -> None:
    """Who may attend to whom is a matter of each layer's own mask, in the prompt and for the words that follow."""

    @dataclass(frozen=True)
    class Blind(Fixed):
        def answer(self, tokens: Tokens, site: Site) -> Sight:
            sees = torch.tensor([[True, True], [False, True]])  # text sees no visual token
            return Sight(torch.zeros(len(tokens), dtype=torch.long, device=tokens.index.device), sees)

    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS[:1])
    method = Fixed((site(3, 2, tokens=tokens),))
    sight = Blind((Site("decoder", 3, action="sight"),))
    with torch.no_grad():
        with foveate.compress(model, method + sight):
            out = generate(model, batch, output_logits=True, return_dict_in_generate=True)
            full = model(**tiny.longer("llava", batch, out.sequences)).logits
        with foveate.compress(model, method):
            assert (model(**batch).logits[:, -1] - full[:, batch["input_ids"].shape[1] - 1]).abs().max() > 1e-3
    for step in range(4):
        close(full[:, batch["input_ids"].shape[1] - 1 + step], out.logits[step])


@pytest.mark.parametrize("of", ["qk", "q"])
def test_a_step_reads_the_attention_of_a_layer_that_reuses(of: Any) -> None:
    """What it pays to the image is what a full forward says of the same words."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    read: list[Tensor] = []

    @dataclass(frozen=True)
    class Reads(Method):
        """Looks at the attention of the layer before."""

        at: str = "decode"

        def sites(self, host: Host) -> Sequence[Site]:
            here = Site.decode(3) if self.at == "decode" else Site.skip(3, "ffn")
            return [replace(here, signals=(Signal("last_row", layer=2),))]

        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            read.append(tokens.signal("last_row", layer=2))
            return Reduction(torch.arange(len(tokens)), tokens.counts)

    lazy = QCache(layers=(2,), of=of)
    with torch.no_grad():
        with foveate.compress(model, lazy + Reads()):
            ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
        steps = read.copy()
        whole = {**batch, "input_ids": ids[:, :-1], "attention_mask": torch.ones_like(ids[:, :-1])}
        with foveate.compress(model, lazy + Reads(at="decoder")):
            model(**whole)
    close(steps[-1], read[-1])
