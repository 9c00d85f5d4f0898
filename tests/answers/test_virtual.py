"""Merged tokens that stand for all of their members (``positions="virtual"``): attention is that of a full sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny
import torch
from calls import CHUNKS, HANDS_OVER_FEATURES, HOOKS_AROUND_CHECKPOINTS, close
from contract import CORE, PROPERTIES, Property
from probes.layer_skip import LayerSkip
from probes.synthetic import Alike, Skips
from torch import Tensor
from virtually import in_full

import foveate
from foveate import Downsample, Host, Method, QCache, Random, Reduction, Site, Tokens
from foveate.errors import ConfigError, InputError, UnsupportedSiteError

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]


@pytest.mark.parametrize("at", ["lm_entry", "tower_output"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_is_a_full_sequence_whose_members_are_averaged(family: str, at: Any) -> None:
    """After each attention, and after whatever stock code adds to visual tokens between layers; two images."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS, only=1)
    seen: list[Tensor] = []
    with torch.no_grad():
        with foveate.compress(model, Alike(at=at, positions="virtual")) as handle, handle.trace() as trace:
            norm = tiny.lm(model).layers[0].input_layernorm
            hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            logits = model(**batch).logits
            hook.remove()
            (visit,), report = trace().sites, handle.report()
        assert visit.groups is not None
        assert visit.present is not None
        visual = tiny.visual_mask(family, batch)[0].nonzero().flatten()
        ends = torch.tensor([0, *torch.tensor(visit.before).cumsum(0).tolist()])
        span = torch.repeat_interleave(torch.arange(len(visit.after)), torch.tensor(visit.after))
        keep = visual[ends[span] + visit.index]  # places of the survivors
        copies = torch.arange(batch["input_ids"].shape[1])
        own = visual if at == "lm_entry" else visual[ends[_span_of(visit.before)] + visit.present]
        copies[own] = keep[visit.groups()]
        left, of = copies.unique(return_inverse=True)
        assert len(left) == seen[0].shape[1] == report.layer_tokens[0] < len(copies)
        close(logits[0, left], in_full(model, batch, of, seen[0][0])[0, left])
    assert report.kv_ratio == 1.0
    assert set(report.kv_lengths) == {len(copies)}


def _span_of(counts: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


@dataclass(frozen=True)
class Loud(Method):
    """The half with the largest hidden states goes on."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", 3, keep=0.5)]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.hidden.float().norm(dim=-1)


METHODS = {
    "entry": Alike(positions="virtual"),
    "tower": Alike(at="tower_output", positions="virtual"),
    "and a cut": Alike(positions="virtual") + Loud(positions="virtual"),
}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_properties(family: str, check: Property) -> None:
    """Where tokens have merged before the language model, and a cut inside takes some of them away."""
    check(family, METHODS["and a cut"])


@pytest.mark.parametrize("check", CORE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", ["entry", "tower"])
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_what_is_at_the_core(family: str, method: str, check: Property) -> None:
    check(family, METHODS[method])


@pytest.mark.parametrize("family", [family for family in tiny.STRUCTURES if family not in tiny.RECURRENT])
def test_other_families(family: str) -> None:
    for check in CORE:
        check(family, METHODS["entry"])


def test_a_cut_drops_all_members() -> None:
    """A token that leaves takes its members with it: from then on, keys are those of the members that are left."""

    @dataclass(frozen=True)
    class Last(Method):
        def sites(self, host: Host) -> Sequence[Site]:
            return [Site("decoder", 2)]

        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            return tokens.keep_indices(torch.arange(len(tokens) - 1, device=tokens.index.device))

    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS, only=0)
    method = Alike(positions="virtual") + Last(positions="virtual")
    with torch.no_grad(), foveate.compress(model, method) as handle, handle.trace() as recorded:
        model(**batch)
        merged, trace = handle.report(), recorded().sites[0]
    assert trace.groups is not None
    n, last = batch["input_ids"].shape[1], int((trace.groups() == trace.groups().max()).sum())
    assert merged.kv_lengths == (n, n, *[n - last] * 4)


@pytest.mark.parametrize("positions", ["keep", "virtual"])
def test_nothing_merges_nothing_changes(positions: Any) -> None:
    """Of tokens that stand for themselves alone, positions are simply kept, to the bit."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with torch.no_grad():
        with foveate.compress(model, Loud(positions="keep")):
            expected = model(**batch).logits
        with foveate.compress(model, Loud(positions=positions)):
            assert torch.equal(model(**batch).logits, expected)
        stock = model(**batch).logits
        with foveate.compress(model, Alike(share=1.0, positions="virtual")):
            assert torch.equal(model(**batch).logits, stock)


@pytest.mark.skipif(not HANDS_OVER_FEATURES, reason="this transformers takes no features")
def test_features_that_are_brought_back() -> None:
    """Who is part of whom is remembered with the features of an image."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS, only=0)
    with torch.no_grad(), foveate.compress(model, METHODS["tower"]):
        expected = model(**batch).logits[:, -1]
        features = model.get_image_features(batch["pixel_values"], return_dict=True)
        rest = {k: v for k, v in batch.items() if k != "pixel_values"}
        close(model(**rest, mm_encoder_outputs={"image": features}).logits[:, -1], expected)


@dataclass(frozen=True)
class Silent(Method):
    """Merges, and does not say whom."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry")]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.keep_indices(torch.arange(0, len(tokens), 2))
        return replace(kept, hidden=tokens.hidden[kept.keep] + 1)


REFUSED = {
    "pixels": (
        "llava",
        Downsample(positions="virtual"),
        UnsupportedSiteError,
        "does not say which tokens each new one",
    ),
    "state": ("qwen3_5", METHODS["entry"], UnsupportedSiteError, "carry a state"),
    "tiles": ("llava_next", METHODS["tower"], UnsupportedSiteError, "merge at lm_entry"),
    "attend": (
        "llava",
        LayerSkip(read=True, positions="virtual"),
        UnsupportedSiteError,
        "a row of keys and values each",
    ),
    "skip": ("llava", Skips(part="attention", positions="virtual"), UnsupportedSiteError, "have one row each"),
    "reuse": ("llava", QCache(positions="virtual"), UnsupportedSiteError, "takes queries and keys of tokens"),
    "policies": ("llava", METHODS["entry"] + Random(), ConfigError, "must agree on positions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence(case: str) -> None:
    family, method, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        foveate.compress(tiny.model(family), method)


def test_refused_in_a_call() -> None:
    model, batch = tiny.model("llava", fresh=True), tiny.inputs("llava", ROWS)
    with foveate.compress(model, Silent(positions="virtual")), pytest.raises(ConfigError, match="groups"):
        model(**batch)
    with foveate.compress(model, METHODS["entry"]):
        if CHUNKS:
            with pytest.raises(InputError, match="chunked prefill cuts"):
                model.generate(**batch, max_new_tokens=2, prefill_chunk_size=7)
        if not HOOKS_AROUND_CHECKPOINTS:
            return
        tiny.lm(model).layers[2].gradient_checkpointing = True
        model.train()
        with pytest.raises(UnsupportedSiteError, match="gradient checkpointing"):
            model(**batch)
