"""Signals of any layer, against what plain torch makes of a stock forward; in a batch as alone."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from calls import HANDS_OVER_FEATURES, ROWS, close
from torch import Tensor, nn
from transformers import DynamicCache

import foveate
from foveate import Host, Method, Reduction, Site, Tokens
from foveate import signal as addresses
from foveate.models import list_families
from foveate.runtime.signals import kinds
from foveate.runtime.signals.kind import KINDS
from foveate.runtime.signals.pattern import Pattern, attention
from foveate.signal import Signal


@pytest.fixture(params=tiny.WHOLE)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass(frozen=True)
class Thin(Method):
    """Drops every third token or so, differently in every span."""

    places: tuple[Site, ...] = ()

    def sites(self, host: Host) -> Sequence[Site]:
        return self.places

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask((tokens.index + tokens.segment) % 3 != 0)


@dataclass(frozen=True)
class Hear(Method):
    """Keeps everything and notes what it is told."""

    places: tuple[Site, ...] = ()
    heard: list[Tokens] = field(default_factory=list, compare=False)

    def sites(self, host: Host) -> Sequence[Site]:
        return self.places

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        self.heard.append(tokens)
        return Reduction(torch.arange(len(tokens)), tokens.counts)


def hear(model: Any, batch: dict[str, Tensor], site: Site, before: Method | None = None) -> Tokens:
    """What a method is told at ``site`` in one forward, after ``before`` has acted."""
    listen = Hear((site,))
    with torch.no_grad(), foveate.compress(model, listen if before is None else before + listen):
        model(**batch)
    (tokens,) = listen.heard
    return tokens


def batch_of(family: str, only: int | None = None) -> dict[str, Tensor]:
    """A padded batch, or a row of it, whose positions do not depend on the padding."""
    batch = tiny.inputs(family, ROWS[family], only=only)
    if family == "llava":
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return batch


def as_alone(family: str, model: Any, site: Site) -> None:
    """Signals of the tokens of each row are those that it has alone."""
    with_images = [i for i, row in enumerate(ROWS[family]) if any(not isinstance(item, int) for item in row)]
    together = hear(model, batch_of(family), site)
    alone = [hear(model, batch_of(family, only=i), site) for i in with_images]
    for asked in site.asked:
        mine, own = together.signal(asked), [tokens.signal(asked) for tokens in alone]
        if asked.of == "text":
            parts = mine.split(together.text_counts)
            mine = torch.cat([parts[i] for i in with_images])
        if asked.kind in ("text_rows", "next_rows"):  # of which another sample has more
            own = [torch.nn.functional.pad(x, (0, mine.shape[-1] - x.shape[-1])) for x in own]
        close(mine, torch.cat(own))


@dataclass(frozen=True)
class Stock:
    """A stock forward: of each layer ``(B, L, C)`` that it is given, ``(B, H, L, L)`` attention, ``(B, G, L, d)`` keys."""

    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]
    keys: list[Tensor]
    rotary: tuple[Tensor, Tensor]
    visual: Tensor
    text: Tensor


def stock(family: str, batch: dict[str, Tensor]) -> Stock:
    """By eager attention, which says what it has paid to whom."""
    model: Any = tiny.model(family, "eager")
    rotary: list[Any] = []
    layer = model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: rotary.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    cache = DynamicCache()
    with torch.no_grad():
        out = model(**batch, output_attentions=True, output_hidden_states=True, past_key_values=cache)
    hook.remove()
    visual = tiny.visual_mask(family, batch)
    if rotary[0][0].dim() == 4:
        pytest.skip("tables of this transformers have an axis for each position")
    cos, sin = (x.expand(len(visual), -1, -1) for x in rotary[0])
    text = batch["attention_mask"].bool() & ~visual
    return Stock(out.hidden_states, out.attentions, [layer.keys for layer in cache.layers], (cos, sin), visual, text)


def test_a_layer_of_the_language_model(family: str, impl: str) -> None:
    model, batch = tiny.model(family, impl), batch_of(family)
    right = stock(family, batch)
    words = (Signal("hidden", 1, "text"), Signal("keys", 1, "text"), Signal("hidden", of="text"))
    asked = (
        *(Signal("hidden", 1), Signal("keys", -tiny.LAYERS + 1), Signal("residual", 0), Signal("last_row", 0)),
        *(Signal("received", 1, rows="text"), Signal("text_rows", 0), Signal("text_rows", 1, rows="text", heads=True)),
        *("keys", "last_row", "rope", "text_place", Signal("text_place", rows="text"), *words),
    )
    site = Site("decoder", 4, signals=asked)
    tokens, visual, text = hear(model, batch, site), right.visual, right.text
    close(tokens.signal("hidden", 1), right.hidden[1][visual])
    close(tokens.signal("keys", -tiny.LAYERS + 1), right.keys[1].transpose(1, 2)[visual])
    close(tokens.keys, right.keys[3].transpose(1, 2)[visual])
    close(tokens.signal("residual", 0), (right.hidden[1] - right.hidden[0])[visual])
    close(tokens.signal("last_row", 0), right.attention[0][:, :, -1].transpose(1, 2)[visual])
    close(tokens.last_row, right.attention[3][:, :, -1].transpose(1, 2)[visual])
    close(tokens.signal("hidden", 1, "text"), right.hidden[1][text])
    close(tokens.signal("hidden", of="text"), right.hidden[4][text])
    close(tokens.signal("keys", 1, "text"), right.keys[1].transpose(1, 2)[text])
    close(tokens.rope, torch.stack([x[visual] for x in right.rotary], 1))
    assert tokens.text_counts == tuple(text.sum(1).tolist())
    paid = right.attention[1].mean(1)
    mean = torch.stack([paid[b][text[b]].mean(0) for b in range(len(text))])
    close(tokens.signal("received", 1, rows="text"), mean[visual])
    start = 0
    for b in range(len(text)):
        n, own = int(visual[b].sum()), slice(start, start + int(visual[b].sum()))
        start += n
        if n == 0:
            continue
        question = text[b] & (torch.arange(len(text[b])) > int(visual[b].nonzero().max()))
        rows = tokens.signal("text_rows", 0)[own]
        r = int(question.sum())
        close(rows[:, :r], right.attention[0].mean(1)[b][question][:, visual[b]].T)
        assert not rows[:, r:].any()
        all_rows = tokens.signal("text_rows", 1, rows="text", heads=True)[own]
        close(all_rows[..., : int(text[b].sum())], right.attention[1][b][:, text[b]][..., visual[b]].permute(2, 0, 1))
        packed = right.hidden[4][text]
        close(packed[tokens.text_place[b][:r]], right.hidden[4][b][question])
        assert bool((tokens.text_place[b][r:] == -1).all())
        place = tokens.signal("text_place", rows="text")[b]
        close(packed[place[place >= 0]], right.hidden[4][b][text[b]])
    as_alone(family, model, replace(site, signals=tuple(each for each in site.asked if each.kind != "text_place")))


def test_the_layer_to_come(family: str, impl: str) -> None:
    """Its own attention, before it has run: at the first layer, deeper, and on tokens of which some have left."""
    model, batch = tiny.model(family, impl), batch_of(family)
    right, asked = stock(family, batch), ("next_row", "next_rows", Signal("next_rows", rows="text", heads=True))
    for layer in (0, 3):
        tokens = hear(model, batch, Site("decoder", layer, signals=asked))
        close(tokens.next_row, right.attention[layer][:, :, -1].transpose(1, 2)[right.visual])
        close(tokens.next_rows[:, 0].sum(), _first_of_question(right, layer))
        as_alone(family, model, Site("decoder", layer, signals=asked))
    thin, last = Thin((Site("decoder", 1),)), Site("decoder", 3, signals=("last_row", "text_rows"))
    ahead, after = hear(model, batch, Site("decoder", 2, signals=asked), thin), hear(model, batch, last, thin)
    close(ahead.next_row, after.last_row)
    close(ahead.next_rows, after.text_rows)


def _first_of_question(right: Stock, layer: int) -> Tensor:
    """What the first token after the last visual one pays to all visual tokens of its row, summed over rows."""
    paid = torch.zeros(())
    for b, visual in enumerate(right.visual):
        if bool(visual.any()):
            paid += right.attention[layer].mean(1)[b, int(visual.nonzero().max()) + 1][visual].sum()
    return paid


def test_the_layer_to_come_of_a_later_turn(impl: str) -> None:
    """It sees the keys of earlier forwards, reduced or not, and writes nothing into the cache."""
    model: Any = tiny.model("llava", impl)
    batch = tiny.inputs("llava", [[3, "image", 4]])
    thin = Thin((Site("decoder", 1),))
    for before in (None, thin):
        listen = [
            Hear((Site("decoder", 2, signals=("next_row",)),)),
            Hear((Site("decoder", 3, signals=("last_row",)),)),
        ]
        both = listen[0] + listen[1]
        with torch.no_grad(), foveate.compress(model, both if before is None else before + both):
            cache = DynamicCache()
            model(**batch, past_key_values=cache)
            n = batch["input_ids"].shape[1]
            mask = torch.ones(1, 2 * n, dtype=torch.long)
            model(**{**batch, "attention_mask": mask}, past_key_values=cache)
        assert int(cache.get_seq_length()) == 2 * n
        for ahead, after in zip(listen[0].heard, listen[1].heard, strict=True):
            close(ahead.next_row, after.last_row)
        assert len(listen[0].heard) == 2


def test_what_a_look_ahead_costs(family: str) -> None:
    """The report counts its projections and its rows."""
    model, batch = tiny.model(family, "eager"), tiny.inputs(family, ROWS[family])
    counted = []
    for signals in ((), ("next_row",)):
        with foveate.compress(model, Hear((Site("decoder", 2, signals=signals),))) as handle, torch.no_grad():
            with tiny.flop_counter() as counter:
                model(**batch)
            counted.append((counter.get_total_flops(), handle.report().flops["sites"]))
    (stock, nothing), (ours, sites) = counted
    assert nothing == 0
    assert sites == pytest.approx(ours - stock, rel=0.02)


def test_signals_of_a_layer_follow_reductions(family: str, impl: str) -> None:
    """Those of the tokens that are still there, wherever the others have left."""
    model, batch = tiny.model(family, impl), batch_of(family)
    for places, early, of in (
        ((Site("decoder", 2), Site("decoder", 3)), 1, "decoder"),
        ((Site("tower", 1, where="mid"), Site("tower", 2)), 0, "tower_output"),
    ):
        asked: tuple[Any, ...] = tuple(
            Signal(kind, early) for kind in ("hidden", "residual", "keys", "values", "received")
        )
        if of == "decoder":
            asked += (Signal("last_row", early), Signal("text_rows", early))
        elif family in tiny.CLS:
            asked += (Signal("cls_row", early), Signal("hidden", early, "cls"), Signal("keys", early, "cls"))
        site = Site("decoder", 4, signals=asked) if of == "decoder" else Site("tower_output", signals=asked)
        whole, left = hear(model, batch, site), hear(model, batch, site, Thin(places))
        assert len(left) < len(whole)
        at = {(s, i): n for n, (s, i) in enumerate(zip(whole.segment.tolist(), whole.index.tolist()))}
        keep = torch.tensor([at[each] for each in zip(left.segment.tolist(), left.index.tolist())])
        for each in asked:
            right = whole.signal(each) if each.of == "cls" else whole.signal(each)[keep]
            close(left.signal(each), right, 1e-5)


# -- the vision tower -----------------------------------------------------------------------------------------------------


def block_inputs(model: Any, batch: dict[str, Tensor]) -> list[Any]:
    """What stock code calls every vision block with."""
    given: list[Any] = []
    hooks = [
        block.register_forward_pre_hook(lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
        for block in tiny.blocks(model)
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return given


def test_a_block_of_a_padded_tower(impl: str) -> None:
    model: Any = tiny.model("llava", impl)
    batch = tiny.inputs("llava", ROWS["llava"])
    tower = tiny.model("llava", "eager").model.vision_tower
    keys: dict[int, Tensor] = {}
    hooks = [
        layer.self_attn.k_proj.register_forward_hook(lambda module, args, output, i=i: keys.update({i: output}))
        for i, layer in enumerate(tower.encoder.layers)
    ]
    states: list[Tensor] = []  # of the second block, between attention and FFN
    hooks += [
        tower.encoder.layers[2].layer_norm2.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    ]
    with torch.no_grad():
        out = tower(batch["pixel_values"], output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    asked = (
        *(Signal("cls_row", 0), Signal("cls_row", -2), "cls_row", Signal("hidden", 1), Signal("keys", 0)),
        *(Signal("received", 0), Signal("hidden", 1, "cls"), Signal("hidden", of="cls"), Signal("keys", of="cls")),
    )
    site, heads = Site("tower_output", signals=asked), tower.config.num_attention_heads
    tokens = hear(model, batch, site)
    for asked_row, block in (
        (Signal("cls_row", 0), 0),
        (Signal("cls_row", -2), tiny.BLOCKS - 2),
        (Signal("cls_row"), tiny.BLOCKS - 1),
    ):
        close(tokens.signal(asked_row), out.attentions[block][:, :, 0, 1:].transpose(1, 2).flatten(0, 1))
    close(tokens.signal("hidden", 1), out.hidden_states[1][:, 1:].flatten(0, 1))
    close(tokens.signal("hidden", 1, "cls"), out.hidden_states[1][:, 0])
    close(tokens.signal("hidden", of="cls"), out.hidden_states[tiny.BLOCKS][:, 0])
    close(tokens.signal("keys", 0), keys[0].unflatten(-1, (heads, -1))[:, 1:].flatten(0, 1))
    close(tokens.signal("keys", of="cls"), keys[tiny.BLOCKS - 1].unflatten(-1, (heads, -1))[:, 0])
    close(tokens.signal("received", 0), out.attentions[0].mean((1, 2))[:, 1:].flatten())
    mid = Site("tower", 2, where="mid", signals=("keys", Signal("hidden", 2), Signal("hidden", of="cls")))
    inside = hear(model, batch, mid)
    close(inside.signal("hidden", 2), out.hidden_states[2][:, 1:].flatten(0, 1))
    close(inside.signal("hidden", of="cls"), states[0][:, 0])
    close(inside.keys, keys[2].unflatten(-1, (heads, -1))[:, 1:].flatten(0, 1))
    as_alone("llava", model, site)


def test_attention_that_is_told_no_scale_is_that_of_torch() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 16)
    how = Pattern.told(nn.Identity(), query, torch.zeros(1, 1, 5, 5), {})
    rows = attention(query, key, None, how, torch.arange(5)[None])
    close(rows @ value, nn.functional.scaled_dot_product_attention(query, key, value))


def test_a_block_of_a_packed_tower(impl: str) -> None:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    family, batch = "qwen2_5_vl", tiny.inputs("qwen2_5_vl", ROWS["qwen2_5_vl"])
    model: Any = tiny.model(family, impl)
    given = block_inputs(model, batch)
    asked = (Signal("hidden", 2), Signal("keys", 1), "keys")
    tokens = hear(model, batch, Site("tower_output", signals=asked))
    x = [args[0] if args else kwargs["hidden_states"] for args, kwargs in given]
    close(tokens.signal("hidden", 2), x[2].view(len(tokens), -1))
    for signal, block in ((Signal("keys", 1), 1), (Signal("keys"), tiny.BLOCKS - 1)):
        layer = tiny.blocks(model)[block]
        with torch.no_grad():
            q, k, _ = layer.attn.qkv(layer.norm1(x[block])).view(len(x[block]), 3, layer.attn.num_heads, -1).unbind(1)
            _, k = apply_rotary_pos_emb_vision(q, k, *given[block][1]["position_embeddings"])
        close(tokens.signal(signal), k.view(len(tokens), 4, layer.attn.num_heads, -1).transpose(1, 2).flatten(2))
    as_alone(family, model, Site("tower_output", signals=(*asked, Signal("received", 0))))


def test_states_of_the_tower_in_the_language_model(family: str, impl: str) -> None:
    """Of the tokens that are there, wherever others have left, and in `generate`, with beams."""
    model: Any = tiny.model(family, impl)
    batch = batch_of(family)
    x = [args[0] if args else kwargs["hidden_states"] for args, kwargs in block_inputs(model, batch)]
    if family == "llava":
        right = x[1][:, 1:].flatten(0, 1)
    else:
        units = hear(model, batch, Site("tower_output"))  # window after window
        right = x[1].view(len(units), -1)[(1000 * units.segment + units.index).argsort()]
    asked: Any = (Signal("hidden", 1, at="tower"), Signal("hidden", -tiny.BLOCKS + 1, at="tower"))
    for site in (Site("lm_entry", signals=asked), Site("decoder", 2, signals=asked)):
        tokens = hear(model, batch, site)
        for each in asked:
            close(tokens.signal(each), right)
        thin = Thin((Site("tower", 2), Site("tower_output"), Site("lm_entry"), Site("decoder", 1)))
        if site.at == "lm_entry":
            thin = Thin((Site("tower", 2), Site("tower_output")))
        left = hear(model, batch, site, thin)
        full = torch.tensor([0, *tokens.counts]).cumsum(0)[left.segment] + left.index
        assert len(left) < len(tokens)
        close(left.signal(asked[0]), right[full])
        as_alone(family, model, site)
    if not HANDS_OVER_FEATURES:
        return  # and repeats images for beams one by one, not those of a row as a group
    listen = Hear((Site("lm_entry", signals=asked),))
    with foveate.compress(model, listen):
        model.generate(**batch, max_new_tokens=2, num_beams=2, do_sample=False)
    rows = torch.tensor(listen.heard[0].spans.row)[listen.heard[0].segment]
    close(listen.heard[0].signal(asked[0])[rows % 2 == 0], right)


@pytest.mark.parametrize("structure", [name for name in tiny.STRUCTURES if name not in tiny.WHOLE])
def test_on_towers_and_decoders_of_all_kinds(structure: str) -> None:
    """In a batch as alone, and the layer to come says before it runs what it says when it has."""
    model, batch = tiny.model(structure), tiny.inputs(structure, ROWS[structure])
    asked = (Signal("hidden", 1), Signal("values", 1), Signal("hidden", 1, "text"), Signal("last_row", 1), "next_row")
    site = Site("decoder", 3, signals=asked)
    if not list_families()[structure].tower.arrangements:
        site = replace(site, signals=(*asked, Signal("hidden", tiny.BLOCKS - 1, at="tower")))
    as_alone(structure, model, site)
    close(hear(model, batch, site).next_row, hear(model, batch, Site("decoder", 4, signals=("last_row",))).last_row)
    last = tiny.BLOCKS - 1
    of_tower: tuple[Any, ...] = (Signal("hidden", last), Signal("residual", last), Signal("received", last), "keys")
    as_alone(structure, model, Site("tower_output", signals=of_tower))


def test_a_look_ahead_where_tokens_skip_the_attention(family: str) -> None:
    """It is of all tokens, and asks nobody who skips."""
    model, batch = tiny.model(family), batch_of(family)
    listen, skips = Hear((Site("decoder", 2, signals=("next_row",)),)), Thin((Site.skip(2, "attention"),))
    with torch.no_grad(), foveate.compress(model, listen + skips) as handle:
        model(**batch)
        assert [visit.method for visit in handle.report().visits] == ["hear", "thin"]
    close(listen.heard[0].next_row, hear(model, batch, Site("decoder", 3, signals=("last_row",))).last_row)


# -- a kind of one's own --------------------------------------------------------------------------------------------------

FILE = '''
from foveate.runtime.signals.kinds.keys import Keys


class Probes(Keys):
    """Queries ``(N, H, d)`` of an attention."""

    name = "probes"
    state = "queries"
'''


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new kind: one file beside the others."""
    (tmp_path / "probes.py").write_text(FILE)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    with pytest.raises(foveate.FoveateError, match="there is no signal 'probes'; there are cls_row, "):
        Site("decoder", 2, signals=("probes",))
    importlib.import_module(f"{kinds.__name__}.probes")
    yield "probes"
    del KINDS["probes"], sys.modules[f"{kinds.__name__}.probes"]
    addresses._OTHERS.pop("probes", None)
    addresses._without_address.cache_clear()


def test_a_new_kind_is_one_file(family: str, impl: str, probes: str) -> None:
    model, batch = tiny.model(family, impl), batch_of(family)
    for site in (Site("decoder", 2), Site("tower_output")):
        site = replace(site, signals=(probes, Signal(probes, 0)))
        tokens = hear(model, batch, site)
        assert tokens.probes.shape[0] == len(tokens)
        as_alone(family, model, site)
    out: list[Tensor] = []
    hook = model.model.language_model.layers[1].self_attn.q_proj.register_forward_hook(
        lambda *given: out.append(given[2])
    )
    tokens = hear(model, batch, Site("decoder", 2, signals=(probes,)))
    hook.remove()
    plain = out[0][tiny.visual_mask(family, batch)].view(len(tokens), tokens.probes.shape[1], -1)
    close(tokens.probes.norm(dim=-1), plain.norm(dim=-1))  # RoPE turns them
