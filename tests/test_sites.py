"""Where a method may act and what it may ask for there; anything else is one clear sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny
import torch
from refusals import ROWS, At, left_as_it_was, refused

import foveate
from foveate import Downsample, Reduction, Site, Tokens
from foveate.errors import ConfigError, UnsupportedSiteError


@dataclass(frozen=True)
class Listening(At):
    """Looks at every signal that it asked for."""

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        for asked in site.asked:
            signal = tokens.signal(asked)
            assert len(signal) == (sum(tokens.text_counts) if asked.kind == "text" else len(tokens))
            assert signal.isfinite().all()
        if site.at == "pixels":
            return Downsample().reduce(tokens, site)
        return super().reduce(tokens, site)


def test_block_out_of_range(family: str) -> None:
    model = tiny.model(family)
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        for block in (tiny.BLOCKS, 99, -tiny.BLOCKS - 1):
            note = " .features are taken" if block == tiny.BLOCKS and family in tiny.LLAVA else "$"
            sentence = f"no tower layer {block}: .* 0 to {tiny.BLOCKS - 1}{note}"
            refused(model, At(places=(Site("tower", block),)), UnsupportedSiteError, sentence)


def test_a_block_that_the_language_model_never_sees() -> None:
    """LLaVA reads the features before the last block: a reduction there would change nothing."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    assert len(model.model.vision_tower.encoder.layers) == tiny.BLOCKS + 1
    for where in ("before", "mid"):
        unseen, seen = (At(places=(Site("tower", tiny.BLOCKS - i, where=where),)) for i in (0, 1))  # type: ignore[arg-type]
        with left_as_it_was(model, batch) as before:
            refused(model, unseen, UnsupportedSiteError, "before the tower's last block")
            with foveate.compress(model, seen):
                assert not torch.equal(tiny.text_logits(model, batch), before)


SITES: list[tuple[str, tuple[Site, ...], str]] = [
    ("qwen2_vl", (Site("tower_output", signals=("cls_row",)),), "no CLS"),
    ("qwen2_5_vl", (Site("tower", 1, unit="patch"),), "single patches"),
    ("llava", (Site("tower", 1, action="restore"),), "nothing is parked"),
    ("llava", (Site("tower", 1, action="park"),), "never restores"),
    ("llava", (Site("tower", 1, action="attend"),), "attends to parked tokens, but nothing is parked"),
    ("llava", (Site("tower", 2, action="park"), Site("tower", 1, action="restore")), "nothing is parked"),
    (
        "llava",
        (Site("lm_entry", action="park"), Site("decoder", 3, action="restore")),
        "before a layer, not at lm_entry",
    ),
    ("llava", (Site("tower", 1, signals=("last_row",)),), "no text"),
    ("llava", (Site("tower_output", signals=("text",)),), "no text"),
    ("llava", (Site("decoder", 0, signals=("last_row",)),), "no layer before it"),
    ("llava", (Site("tower", 0, signals=("keys",)),), "no layer before it"),
    ("llava", (Site("decode", 2, signals=("residual",)),), "keys, last_row, values"),
    ("llava", (Site("lm_entry", signals=("keys",)),), "cannot give"),
    ("llava", (Site("lm_entry", signals=("residual",)),), "cannot give"),
    ("llava", (Site("lm_entry", signals=("last_row",)),), "cannot give"),
    ("llava", (Site("pixels", signals=("keys",)),), "cannot give"),
    ("llava", (Site("decoder", 2, signals=("cls_row",)),), "cannot give"),
    ("llava", (Site("decoder", 2, step=3),), "decoder 2 at step 3, but 'llava' writes its answer word by word"),
]


@pytest.mark.parametrize(("family", "sites", "sentence"), SITES)
def test_sites_that_make_no_sense(family: str, sites: tuple[Site, ...], sentence: str) -> None:
    model = tiny.model(family)
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        refused(model, At(places=sites), UnsupportedSiteError, sentence)


SIGNALS: list[tuple[Site, tuple[str, ...]]] = [
    (Site("tower", 2), ("residual", "queries", "keys", "values", "received")),
    (Site("tower", 1, where="mid"), ("residual", "queries", "keys", "values", "received")),
    (Site("tower_output"), ("residual", "keys", "values", "received")),
    (Site("lm_entry"), ("text",)),
    (Site("decoder", 2), ("residual", "keys", "values", "received", "last_row", "text_rows", "text")),
    (Site("decode", 2), ("keys", "values", "last_row")),
    (Site("cache", 3), ("keys", "values", "received", "last_row", "text_rows")),
]


@pytest.mark.parametrize(
    "site",
    [
        *(Site("pixels"), Site("decoder", 0), Site("tower", 0), *(site for site, _ in SIGNALS)),
        *(replace(site, signals=(name,)) for site, names in SIGNALS for name in names),
        *(replace(site, signals=names) for site, names in SIGNALS),
    ],
    ids=lambda site: "-".join(map(str, [site, *site.signals])),
)
def test_sites_that_make_sense(family: str, site: Site) -> None:
    """Every place takes a method, with no signal and with each that it can give."""
    if site.at == "decode" and tiny.slides(family):
        pytest.skip("sliding layers have no decode sites")
    if site.at == "cache":
        layers = tiny.of_attention(family, range(tiny.LAYERS))
        site = replace(site, layer=next(i for i in layers if not tiny.window(family, i)))
    if site.at == "pixels" and family in tiny.tiles.OVIS:
        pytest.skip("its tower takes images of one size")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with left_as_it_was(model, batch), foveate.compress(model, Listening(places=(site,))) as handle:
        model.generate(**batch, max_new_tokens=3)
        few = (
            family in tiny.RECURRENT and site.at == "decode"
        )  # three tiny layers to hide from cost less than reading one
        report = handle.report()
    saved = report.kv_ratio if site.at == "cache" else report.flops_ratio
    assert saved < 1 or site.at == "pixels" or few


NOWHERE: list[tuple[dict[str, Any], str]] = [
    ({"at": "tower", "layer": 1, "action": "attend", "where": "mid"}, "before a block or layer"),
    ({"at": "tower_output", "action": "attend"}, "before a block or layer"),
    ({"at": "tower_output", "action": "park"}, "saves nothing"),
    ({"at": "decode", "signals": ("last_row",)}, "layer 1"),
    ({"at": "decoder", "layer": 2, "where": "mid"}, "mid"),
    ({"at": "tower_output", "where": "mid"}, "mid"),
    ({"at": "decoder", "unit": "patch"}, "vision tower"),
    ({"at": "lm_entry", "layer": 2}, "at no layer"),
]


@pytest.mark.parametrize(("words", "sentence"), NOWHERE)
def test_sites_that_no_model_has(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Site(**words)


def test_a_constructor_for_each_place() -> None:
    assert Site.tower(3, 0.5, mid=True) == Site("tower", 3, 0.5, where="mid")
    assert Site.decoder(2, 0.5, signals=("keys",)) == Site("decoder", 2, 0.5, signals=("keys",))
    assert (Site.pixels(0.5), Site.output(0.5), Site.entry()) == (
        Site("pixels", keep=0.5),
        Site("tower_output", keep=0.5),
        Site("lm_entry"),
    )
    assert Site.decode(3, 0.5) == Site("decode", 3, 0.5)
    assert Site.park(1, 0.5, unit="patch") == Site("tower", 1, 0.5, action="park", unit="patch")
    assert (Site.restore(), Site.restore(4)) == (
        Site("tower_output", action="restore"),
        Site("tower", 4, action="restore"),
    )
    assert Site.attend(2) == Site("tower", 2, action="attend")
    assert Site.skip(2, "ffn", 0.5) == Site("decoder", 2, 0.5, action="skip", part="ffn")
    assert Site.channels(2) == Site("decoder", 2, action="channels", part="ffn")
    assert (Site.remember(), Site.remember(1)) == (
        Site("lm_entry", action="remember"),
        Site("decoder", 1, action="remember"),
    )
    assert Site.inject(2, "prompt") == Site("decoder", 2, action="inject", part="ffn", into="prompt")
    assert (Site.sight(), Site.sight(1)) == (Site("lm_entry", action="sight"), Site("decoder", 1, action="sight"))


@pytest.mark.parametrize(
    "words", [{"at": "decodr"}, {"where": "after"}, {"action": "drop"}, {"unit": "pixel"}, {"signals": ("atention",)}]
)
def test_words_that_no_site_knows(words: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(*words.values()).strip("(),")):
        Site(**{"at": "decoder", **words})
