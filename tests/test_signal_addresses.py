"""The address of a signal, how it is read, and what is said where it cannot be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from refusals import At, refused

from foveate import Site
from foveate.errors import ConfigError, UnknownNameError, UnsupportedSiteError
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.signals.kind import KINDS
from foveate.signal import KNOWN_BEFORE, OF_ATTENTION, Signal, kinds


def test_a_name_is_short_for_a_signal() -> None:
    site = Site("decoder", 2, signals=("keys", Signal("keys"), Signal("cls_row", layer=8)))
    assert site.signals == (Signal("keys"), Signal("keys"), Signal("cls_row", 8))
    tokens = replace(
        tokens_of(frames([(1, 2, 2)])), signals={"keys": torch.ones(4, 1, 1), Signal("keys", 3): torch.zeros(4)}
    )
    assert tokens.keys is tokens.signal("keys") is tokens.signals["keys"] is tokens.signals[Signal("keys")]
    assert not tokens.signal("keys", layer=3).any()
    assert "keys" in tokens.signals
    assert "values" not in tokens.signals
    with pytest.raises(
        UnknownNameError, match="signal 'last_row' was not asked for: add it to the `signals` of this site"
    ):
        tokens.last_row  # noqa: B018
    with pytest.raises(UnknownNameError, match="signal keys of layer 4 was not asked for"):
        tokens.signal("keys", layer=4)
    with pytest.raises(AttributeError, match="no attribute 'atention'"):
        tokens.atention  # noqa: B018
    with pytest.raises(ConfigError, match="there is no signal 'atention'; there are cls_row, hidden, "):
        tokens.signal("atention")


@pytest.mark.parametrize("asked", ["atention", 3, Signal, ("keys",)])
def test_what_is_no_signal(asked: Any) -> None:
    with pytest.raises(ConfigError, match="no signal"):
        Site("decoder", 2, signals=(asked,))


def test_every_kind_says_what_it_is() -> None:
    assert kinds() == KINDS.keys()
    for name, kind in KINDS.items():
        assert kind.__module__.endswith(f".{name}"), "a file has the name of its kind"
        assert "``" in (kind.__doc__ or ""), f"{name}: the docstring says its shape"
        assert kind(Signal(name)).made_up(lambda *shape: torch.rand(5, *shape)).shape[0] == 5


REFUSED: list[tuple[str, Site, str]] = [
    ("llava", Site("decoder", 2, signals=(Signal("keys", 9),)), "no decoder layer 9: the model has"),
    ("llava", Site("decoder", 2, signals=(Signal("keys", 2),)), "layer 2 has not run there yet: ask for 0 to 1"),
    ("llava", Site("decoder", 2, signals=(Signal("hidden", -1),)), "has not run there yet"),
    ("llava", Site("tower", 2, signals=(Signal("cls_row", 3),)), "vision block 3 has not run there yet"),
    ("llava", Site("tower", 0, signals=(Signal("hidden", 0),)), "has not run there yet: act at a later site"),
    ("llava", Site("decoder", 2, signals=(Signal("keys", of="cls"),)), "stays in the vision tower"),
    ("qwen2_5_vl", Site("tower_output", signals=(Signal("keys", of="cls"),)), "no CLS token"),
    ("llava", Site("tower_output", signals=(Signal("keys", of="text"),)), "no text reaches"),
    ("llava", Site("tower_output", signals=(Signal("received", rows="text"),)), "no text reaches"),
    ("llava", Site("tower_output", signals=("next_row",)), "cannot give next_row"),
    ("llava", Site("decode", 2, signals=(Signal("keys", 0),)), "reads the layer before it only"),
    ("llava", Site("decoder", 2, signals=(Signal("last_row", rows="all"),)), "has no choice of rows"),
    ("llava", Site("decoder", 2, signals=(Signal("text_rows", rows="all"),)), "has rows of question or text"),
    ("llava", Site("decoder", 2, signals=(Signal("keys", heads=True),)), "leave heads=True out"),
    ("llava", Site("decoder", 2, signals=(Signal("rope", 1),)), "rope is of no layer"),
    (
        "llava",
        Site("decoder", 2, signals=(Signal("keys", 1, at="tower"),)),
        "only cls_row and hidden and received of vision blocks",
    ),
    ("llava", Site("lm_entry", signals=(Signal("hidden", tiny.BLOCKS, at="tower"),)), "no vision block"),
    ("llava", Site("tower_output", signals=(Signal("hidden", 1, at="tower"),)), "leave at=.tower. out"),
    ("llava_next", Site("lm_entry", signals=(Signal("hidden", 1, at="tower"),)), "cut into tiles"),
    ("qwen3_5", Site("decoder", 0, signals=("next_row",)), "the layer after it carries a state.* use layer 1, 2"),
    ("qwen3_5", Site("decoder", 4, signals=(Signal("keys", 0),)), "that layer carries a state"),
    ("minicpmv4_6", Site("tower_output", signals=(Signal("hidden", 0),)), "where this tower merges them"),
]


@pytest.mark.parametrize(("family", "site", "sentence"), REFUSED, ids=lambda x: str(x)[:40])
def test_signals_that_cannot_be_had(family: str, site: Site, sentence: str) -> None:
    refused(tiny.model(family), At(places=(site,)), UnsupportedSiteError, sentence)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_kind_is_refused_where_it_does_not_exist(name: str) -> None:
    asks = (name,)
    sites = [Site("tower", 2, signals=asks), Site("lm_entry", signals=asks), Site("decoder", 2, signals=asks)]
    for site in sites:
        if site.at not in KINDS[name].places:
            refused(tiny.model("llava"), At(places=(site,)), UnsupportedSiteError, f"cannot give {name}")


def test_rotary_tables_of_renumbered_positions_are_not_known_yet() -> None:
    method = At(places=(Site("decoder", 2, signals=("rope",)),), positions="renumber")
    refused(tiny.model("llava"), method, UnsupportedSiteError, "known only once the site has answered")


def test_it_is_said_of_every_kind_whether_a_layer_has_to_run_first() -> None:
    assert {name for name, kind in KINDS.items() if kind.known_before(Signal(name))} == KNOWN_BEFORE


def test_which_are_attention_weights() -> None:
    assert {name for name, kind in KINDS.items() if (kind.__doc__ or "").startswith("Attention ")} == OF_ATTENTION
