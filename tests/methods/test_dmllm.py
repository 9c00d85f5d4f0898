"""DMLLM in a loop that has no cache: LLaVA with a mask that hides nothing, which fills in its answer step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
import tiny
import torch
from probes.synthetic import pairs
from refusals import At, refused
from torch import Tensor

import foveate
from foveate import DMLLM, Host, Reduction, Site, Tokens
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.models import list_families
from foveate.models.family import Denoising
from foveate.units import left

STEPS, ANSWER, MASK = 8, 4, 30


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A LLaVA whose family says that it writes in steps, as LLaDA-V does."""
    family = replace(list_families()["llava"], denoising=Denoising(steps=lambda model: STEPS))
    monkeypatch.setitem(list_families(), "llava", family)
    made: Any = tiny.build(tiny.config("llava"), "eager")
    made.generate = MethodType(generate, made)
    return made


def filled(ids: Tensor, logits: Tensor) -> Tensor:
    """The ids, where each row has the word that is surest among those that are still masked."""
    sure, word = logits.softmax(-1).max(-1)
    at = torch.where(ids == MASK, sure, -1.0).argmax(1, keepdim=True)
    return torch.where(ids == MASK, ids.scatter(1, at, word.gather(1, at)), ids)


@torch.no_grad()
def generate(self: Any, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> list[Tensor]:
    """Logits of every step, in which the whole sequence runs, both ways."""
    ids, found = torch.cat([input_ids, torch.full((len(input_ids), ANSWER), MASK)], 1), []
    for _ in range(STEPS):
        mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
        out = self(input_ids=ids, pixel_values=pixel_values, attention_mask=mask, use_cache=False)
        found.append(out.logits)
        ids = filled(ids, out.logits)
    return found


@torch.no_grad()
def slow(model: Any, batch: Any, cuts: dict[int, float], layer: int, skips: range = range(0)) -> list[Tensor]:
    """The same by hand: ``cuts``: in which step which share of the visual tokens stays, from ``layer`` on and in later steps;
    ``skips``: layers through which no visual token goes."""
    ids, found, lm = torch.cat([batch["input_ids"], torch.full((1, ANSWER), MASK)], 1), [], model.model.language_model
    features = model.model.get_image_features(batch["pixel_values"]).pooler_output[0]
    there = torch.ones(ids.shape[1], dtype=torch.bool)
    visual = ids[0] == tiny.IMAGE_TOKEN["llava"]
    for number in range(STEPS):
        embeds = lm.embed_tokens(ids[0])
        embeds[visual] = features
        place, rows = there.nonzero().flatten(), embeds[there]

        def run(layer: Any, rows: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
            x, mask = rows[None], torch.zeros(1, 1, len(rows), len(rows))
            turned = lm.rotary_emb(x, place[None])
            _, paid = layer.self_attn(layer.input_layernorm(x), position_embeddings=turned, attention_mask=mask)
            return layer(x, position_embeddings=turned, attention_mask=mask)[0], paid[0].mean((0, 1))

        received = torch.empty(0)
        for i, each in enumerate(lm.layers):
            if i == layer and number in cuts:
                own = visual[place].nonzero().flatten()
                kept = own[received[own].argsort(descending=True)[: round(cuts[number] * len(own) + 1e-6)]]
                stays = ~visual[place]
                stays[kept] = True
                rows, place = rows[stays], place[stays]
                there = torch.zeros_like(there)
                there[place] = True
            goes = ~visual[place] if i in skips else torch.ones(len(place), dtype=torch.bool)
            new, received = run(each, rows[goes], place[goes])
            rows = rows.index_put((goes.nonzero().flatten(),), new)
        logits = model.lm_head(lm.norm(rows))
        whole = torch.zeros(1, ids.shape[1], logits.shape[-1])
        whole[0, place] = logits
        found.append(whole)
        ids = filled(ids, whole)
    return found


CASES = {
    "late": (DMLLM(how="late", ratio=0.5), {6: 0.5}, range(0)),
    "progressive": (DMLLM(how="progressive", ratio=0.125), {2: 0.5, 4: 0.5, 6: 0.5}, range(0)),
    "skip": (DMLLM(how="skip", layer=2, last=4), {}, range(2, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_plain_loop(model: Any, case: str) -> None:
    method, cuts, skips = CASES[case]
    batch = tiny.inputs("llava", [[3, "image", 5]])
    text = torch.nn.functional.pad(batch["input_ids"] != tiny.IMAGE_TOKEN["llava"], (0, ANSWER), value=True)
    expected = slow(model, batch, cuts, 3, skips)
    with foveate.compress(model, method) as handle:
        for _ in range(2):  # the second prompt begins anew
            found = model.generate(**batch)
        held = handle.report().layer_tokens
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[text], plain[text], rtol=2e-4, atol=2e-4)
    n = int((~text).sum())
    stays = {"late": [n // 2] * 6, "progressive": [n // 8] * 6, "skip": [n, n, 0, 0, n, n]}[case]
    assert [each - int(text.sum()) for each in held] == pytest.approx(stays, abs=1)


def test_a_batch_is_its_rows(model: Any) -> None:
    rows: list[list[tiny.Item]] = [[3, "image", 5], [6, "image", 2]]
    with foveate.compress(model, DMLLM(how="progressive", ratio=0.125)):
        together = model.generate(**tiny.inputs("llava", rows))
        for i in range(2):
            alone = model.generate(**tiny.inputs("llava", rows, only=i))
            for ours, one in zip(together, alone, strict=True):
                torch.testing.assert_close(ours[i], one[0], rtol=2e-4, atol=2e-4)


def test_tokens_do_not_merge_at_a_step(model: Any) -> None:
    """The next one begins with the image as it was; nor is anything else than leaving said there."""

    class Merging(At):
        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            return pairs(tokens)

    with (
        foveate.compress(model, Merging(places=(Site.decoder(2, 0.5, step=1),))),
        pytest.raises(
            UnsupportedSiteError, match="merging merges tokens at decoder 2 at step 1, and the next step begins"
        ),
    ):
        model.generate(**tiny.inputs("llava", [[3, "image", 5]]))
    with pytest.raises(ConfigError, match="step=2: what tokens do at a denoising step is leave for good"):
        Site.park(1, step=2)
    refused(
        model, At(places=(Site.cache(2, step=1),)), UnsupportedSiteError, "runs the prompt again, and keeps no cache"
    )


FROM_SCRATCH = Host("llada_v", 23, 32, has_cls=False, steps=64)
CANVAS = Host(
    "diffusion_gemma", 27, 12, has_cls=False, steps=48, reads_cache=True, fixed_caches=(0, 1, 2, 4, 5, 6, 8, 9, 10)
)


def test_the_schedule_is_that_of_the_kind_of_model() -> None:
    assert [str(site) for site in DMLLM().sites(FROM_SCRATCH)] == ["decoder 3 at step 48"]
    assert [str(site) for site in DMLLM().sites(Host("llava", 23, 28, has_cls=True))] == ["decoder 15"]
    assert [str(site) for site in DMLLM().sites(CANVAS)] == ["decoder 6"]
    late = DMLLM(steps=(8, 20)).sites(CANVAS)
    assert [str(site) for site in late] == [f"cache {layer} at step {n}" for n in (8, 20) for layer in (3, 7, 11)]
    assert {site.keep for site in late} == {0.5}
    for host in (FROM_SCRATCH, CANVAS):
        for how in ("late", "progressive", "skip"):
            method: Any = DMLLM(how=how, keep=0.97)
            assert left("decode", method.sites(host), host) == pytest.approx(0.97)
    assert DMLLM().mean(FROM_SCRATCH) == pytest.approx((48 + (3 + 29 * 0.25) / 32 + 15 * 0.25) / 64)


def test_steps_that_a_model_does_not_have() -> None:
    with pytest.raises(
        UnsupportedSiteError, match=r"how='late' says at which denoising steps .* word by word: use how='skip'"
    ):
        foveate.compress(tiny.model("llava"), DMLLM(how="late"))
    assert host_of(tiny.model("llava")).steps == 0
    for options, sentence in (
        ({"how": "skip", "steps": (3,)}, "steps says nothing where how='skip'"),
        ({"how": "late", "last": 3}, "last says nothing where how='late'"),
        ({"steps": (3, 2)}, "in ascending order"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            DMLLM(**options)
