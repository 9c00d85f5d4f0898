"""DiffusionGemma, whose canvas reads the KV cache in denoising steps: it sees what is left, as stock code would see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch
import transformers
from calls import close, counted
from packaging.version import Version
from probes.layer_skip import LayerSkip
from probes.synthetic import EVERYTHING, PROBES, Recall
from refusals import At, refused
from snapshot import state_of
from tiny_shared import TOKEN_ID
from torch import Tensor

import foveate
from foveate import DMLLM, Host, Method, Site, Stride, Tokens
from foveate.errors import UnsupportedCacheError, UnsupportedModelError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.units import left

pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"), reason="this transformers does not know it"
)
ROWS: list[list[Any]] = [[3, (8, 8), 5], [2, (4, 12), 4, (8, 4), 7], [6]]
ONE: list[list[Any]] = [[3, (8, 8), 25]]
FULL, SLIDING = (1, 5), (0, 2, 3, 4)  # layers
IMAGE = TOKEN_ID["<image>"]
CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"  # as stock code calls it


@cache
def model_of(impl: str = "sdpa", full: bool = False) -> Any:
    made = tiny.build(impl, **({"layer_types": ["full_attention"] * 6} if full else {}))
    with torch.no_grad():
        made(**tiny.inputs([[1, (4, 4)]]))  # stock code hooks modules of its own at their first forward
    return made


def padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with what hides the padding of the prompt from the canvas, too."""
    return {
        **batch,
        "decoder_attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, tiny.CANVAS), value=1),
    }


def step(model: Any, cache: Any, words: Tensor, **more: Any) -> Any:
    return model(**{CACHE: cache}, decoder_input_ids=words, **more)


def cache_of(output: Any) -> Any:
    return getattr(output, CACHE)


# -- what the canvas sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [name for name in PROBES if name != "recall"])
def test_a_batch_is_its_rows(probe: str) -> None:
    model, method = model_of(), PROBES[probe]
    with torch.no_grad(), foveate.compress(model, method) as handle:
        together = model(**padded(tiny.inputs(ROWS))).logits
        assert handle.report().visits
        for i in range(len(ROWS)):
            close(together[i], model(**tiny.inputs(ROWS, only=i)).logits[0])


def test_keeping_everything_is_stock() -> None:
    model, batch = model_of(), padded(tiny.inputs(ROWS))
    words = batch.pop("decoder_input_ids")
    how = dict(max_new_tokens=2 * tiny.CANVAS, max_denoising_steps=3, decoder_input_ids=words)
    del batch["decoder_attention_mask"]

    def said() -> Tensor:
        torch.manual_seed(0)
        ids = model.generate(**batch, **how)
        found: Tensor = getattr(ids, "sequences", ids)
        return found

    state = state_of(model)
    with torch.no_grad():
        stock, logits = said(), model(**padded({**batch, "decoder_input_ids": words})).logits
        with foveate.compress(model, EVERYTHING + DMLLM(keep=1.0, how="late")):
            assert torch.equal(said(), stock)
            assert torch.equal(model(**padded({**batch, "decoder_input_ids": words})).logits, logits)
    assert state_of(model) == state


@contextmanager
def hidden_from(model: Any, gone: Tensor, layers: Sequence[int]) -> Iterator[None]:
    """The eager stock model, of which ``layers`` see no token that is ``gone (L,)``, in the prompt and on the canvas."""
    least = torch.finfo(torch.float32).min

    def in_prompt(module: Any, args: Any, kwargs: Any) -> Any:
        others = gone & ~torch.eye(len(gone), dtype=torch.bool)  # (a row that sees nothing is NaN)
        others = others[:, -kwargs["attention_mask"].shape[-1] :]
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"].masked_fill(others, least)}

    def on_canvas(module: Any, args: Any, kwargs: Any) -> Any:
        held = kwargs[CACHE].layers[module.layer_idx].keys.shape[-2]
        columns = torch.cat([gone[len(gone) - held :], gone.new_zeros(tiny.CANVAS)])
        mask = torch.zeros(1, 1, tiny.CANVAS, len(columns)).masked_fill(columns, least)
        return args, {**kwargs, "attention_mask": mask}

    stacks: Any = ((in_prompt, model.model.encoder.language_model), (on_canvas, model.model.decoder))
    handles = [
        stack.layers[i].register_forward_pre_hook(hook, with_kwargs=True) for hook, stack in stacks for i in layers
    ]
    yield
    for handle in handles:
        handle.remove()


def test_it_is_the_stock_canvas_without_the_tokens_that_are_gone() -> None:
    """In full layers and in those that slide, whose stock entries hold a window of the whole prompt."""
    model, batch = model_of("eager"), tiny.inputs(ONE)
    visual = (batch["input_ids"][0] == IMAGE).nonzero().flatten()
    with torch.no_grad(), foveate.compress(model, Stride(ratio=0.4, layers=(2,))) as handle:
        found = model(**batch).logits
        (visit,) = handle.report().visits
        lengths = handle.report().kv_lengths
    assert visit.before == (16,)
    assert visit.after == (6,)
    assert lengths[1] - lengths[5] == 10
    gone = torch.zeros(batch["input_ids"].shape[1], dtype=torch.bool)
    gone[visual] = True
    gone[visual[list(visit.kept[0])]] = False
    with torch.no_grad(), hidden_from(model, gone, range(2, 6)):
        close(found, model(**batch).logits)


@pytest.mark.parametrize(("first", "last"), [(1, 3), (0, 1)])
def test_skipped_layers_hold_no_visual_keys(first: int, last: int) -> None:
    """In all others the canvas reads the whole prompt, also where stock code made its mask for layers that hold less."""
    model, batch, method = model_of("eager"), tiny.inputs(ROWS, only=0), LayerSkip(ratio=0.0, first=first, last=last)
    with torch.no_grad(), foveate.compress(model, method) as handle:
        found = model(**batch).logits
        visit = handle.report().visits[0]
        assert (visit.site, visit.before, visit.after) == (f"decoder {first}", (16,), (0,))
        close(model(**padded(tiny.inputs(ROWS))).logits[0], found[0])


def test_renumbered_tokens_are_those_of_a_shorter_prompt() -> None:
    model, batch = model_of(full=True), tiny.inputs(ONE)
    with torch.no_grad(), foveate.compress(model, Stride(keep=0.5, positions="renumber")) as handle:
        found = model(**batch).logits
        (visit,) = handle.report().visits
    ids = batch["input_ids"][0]
    stays = torch.ones(len(ids), dtype=torch.bool)
    visual = (ids == IMAGE).nonzero().flatten()
    stays[visual] = False
    stays[visual[list(visit.kept[0])]] = True
    with torch.no_grad():
        encoder = model.model.encoder
        features = encoder.get_image_features(batch["pixel_values"], batch["image_position_ids"]).pooler_output
        embeds = encoder.get_input_embeddings()(ids)
        embeds[visual] = features
        held = cache_of(encoder(inputs_embeds=embeds[stays][None]))
        close(found, step(model, held, batch["decoder_input_ids"]).logits)


# -- denoising steps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Late(Method):
    """Half of what each growing cache holds leaves before step 2, and half of that before step 3."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.cache(layer, 0.5, step=n, signals=("received",)) for n in (2, 3) for layer in host.growing_caches]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.received


def slow(model: Any, batch: dict[str, Tensor], words: Sequence[Tensor]) -> list[Tensor]:
    """The same in the eager stock model, whose cache is cut by hand."""
    visual = {layer: (batch["input_ids"][0] == IMAGE).nonzero().flatten() for layer in FULL}
    first = {**batch, "decoder_input_ids": words[0]}
    out = model(**first, output_attentions=True)
    found, held, length = [out.logits], cache_of(out), batch["input_ids"].shape[1]
    place = torch.arange(length, length + tiny.CANVAS)[None]
    for number, each in enumerate(words[1:], 1):
        for layer in FULL if number in (2, 3) else ():
            columns, entry = visual[layer], held.layers[layer]
            score = out.attentions[layer][0].mean((0, 1))[columns]
            best = score.argsort(descending=True)[: round(0.5 * len(columns) + 1e-6)].sort().values
            stays = torch.ones(entry.keys.shape[-2], dtype=torch.bool)
            stays[columns] = False
            stays[columns[best]] = True
            entry.keys, entry.values = entry.keys[:, :, stays], entry.values[:, :, stays]
            visual[layer] = (stays.cumsum(0) - 1)[columns[best]]
        out = step(model, held, each, output_attentions=True, decoder_position_ids=place)
        found.append(out.logits)
    return found


def test_a_site_of_the_cache_waits_for_its_step() -> None:
    model, batch = model_of("eager"), tiny.inputs(ONE)
    first = batch.pop("decoder_input_ids")
    words = [(first + 5 * n) % 90 + 20 for n in range(5)]
    with torch.no_grad():
        expected = slow(model, batch, words)
        with foveate.compress(model, Late()) as handle:
            out = model(**batch, decoder_input_ids=words[0])
            found, lengths = [out.logits], []
            for each in words[1:]:
                found.append(step(model, cache_of(out), each).logits)
                lengths.append(cache_of(out).layers[5].keys.shape[-2])
            report = handle.report()
    for ours, plain in zip(found, expected, strict=True):
        close(ours, plain)
    whole = batch["input_ids"].shape[1]
    assert lengths == [whole, whole - 8, whole - 12, whole - 12]
    assert report.decode_steps == 5
    assert [visit.site for visit in report.visits] == [f"cache {i} at step {n}" for n in (2, 3) for i in FULL]
    assert report.shares["decode"] == pytest.approx((4 + 2 * (1 + 1 + 0.5 + 0.25 + 0.25) / 5) / 6)
    assert report.kv_lengths[5] == whole - 12


def test_a_later_turn_and_copies_of_rows_wait_for_their_step() -> None:
    """Images of two turns leave together if no step has come in between; rows are chosen before the first step."""
    model, both = model_of(), tiny.inputs([[3, (8, 8), 5, (4, 8), 4]])
    words, ids = both["decoder_input_ids"], both["input_ids"]
    cut = int((ids[0] == IMAGE).nonzero()[15]) + 3
    first, second = ({"pixel_values": both["pixel_values"][i : i + 1]} for i in range(2))
    for i, turn in enumerate((first, second)):
        turn["image_position_ids"] = both["image_position_ids"][i : i + 1]
    with torch.no_grad(), foveate.compress(model, Late()) as handle:
        cache = cache_of(model(input_ids=ids[:, :cut], **first, decoder_input_ids=words))
        mask = torch.ones_like(ids)
        step(model, cache, words, input_ids=ids[:, cut:], attention_mask=mask, **second)
        cache.batch_repeat_interleave(2)
        for number in range(3):
            step(model, cache, words.repeat(2, 1) + number)
        assert [visit.before for visit in handle.report().visits] == [(16, 8, 16, 8)] * 2 + [(8, 4, 8, 4)] * 2
        assert cache.layers[5].keys.shape[:3] == (2, 2, ids.shape[1] - 24 + 6)
    with torch.no_grad(), foveate.compress(model, Late()):
        cache = cache_of(model(input_ids=ids[:, :cut], **first, decoder_input_ids=words))
        step(model, cache, words)
        cache.reorder_cache(torch.tensor([0]))
        with pytest.raises(
            UnsupportedCacheError, match="late acts at cache 1 at step 2 by what the step before looked at"
        ):
            step(model, cache, words)


def test_generate_counts_the_steps_of_each_canvas() -> None:
    """What has left at a step of the first canvas is gone for the second, and nothing leaves twice; nor is padding kept."""
    model, batch = model_of(), tiny.inputs(ROWS)
    del batch["decoder_input_ids"]
    how = dict(max_new_tokens=2 * tiny.CANVAS, max_denoising_steps=4)
    with torch.no_grad(), foveate.compress(model, Late()) as handle:
        out = model.generate(**batch, **how, return_dict_in_generate=True)
        report = handle.report()
    assert [visit.before for visit in report.visits] == [(16, 12, 8)] * 2 + [(8, 6, 4)] * 2
    text = (batch["attention_mask"].bool() & (batch["input_ids"] != IMAGE)).sum(1).tolist()
    longest = max(n + left for n, left in zip(text, (4, 3 + 2, 0)))
    assert report.decode_steps == 8
    assert cache_of(out).layers[5].keys.shape[-2] == longest + tiny.CANVAS
    assert "cache 1, 5 at step 2 late: 72 -> 36 tokens" in " ".join(str(report).split())


@pytest.mark.parametrize("method", [Stride(ratio=0.5, layers=(0, 2)), Late()], ids=["prompt", "steps"])
def test_flops_are_those_counted(method: Method) -> None:
    model, batch = model_of(), tiny.inputs(ONE)
    first = batch.pop("decoder_input_ids")

    def run() -> None:
        out = model(**batch, decoder_input_ids=first)
        cache = cache_of(out)
        for _ in range(3):
            out = step(model, cache, first, self_conditioning_logits=out.logits)

    stock = counted("sdpa", run)
    with foveate.compress(model, method) as handle:
        ran = counted("sdpa", run)
        report = handle.report()
    assert sum(report.flops.values()) == ran
    assert sum(report.full_flops.values()) == stock


def test_what_it_promises_is_what_the_report_counts() -> None:
    model, batch = model_of(), tiny.inputs(ONE)
    words = batch["decoder_input_ids"]
    model.generation_config.max_denoising_steps = 8
    try:
        host = host_of(model)
        assert (host.steps, host.reads_cache, host.fixed_caches) == (8, True, SLIDING)
        for how, keep in (("late", 0.95), ("progressive", 0.9), ("skip", 0.75)):
            method: Any = DMLLM(how=how, keep=keep)
            assert left("decode", method.sites(host), host) == pytest.approx(keep)
            with torch.no_grad(), foveate.compress(model, method) as handle:
                out = model(**batch)
                for _ in range(7):
                    step(model, cache_of(out), words)
                assert handle.report().shares["decode"] == pytest.approx(keep, abs=1 / 16)
    finally:
        model.generation_config.max_denoising_steps = None


REFUSED: list[tuple[tuple[Site, ...], str]] = [
    (
        (Site("decoder", 2, step=3),),
        "decoder 2 at step 3, but the denoising steps of 'diffusion_gemma' do not run the prompt",
    ),
    ((Site("cache", 1, step=48),), "writes its answer in 48 steps, 0 to 47"),
    ((Site("cache", 0, step=3),), "cache 0 at step 3 is a sliding layer, which forgets by itself"),
    ((Site("decode", 2),), "at every generated token, and 'diffusion_gemma' writes its answer in denoising steps"),
]


@pytest.mark.parametrize(("sites", "sentence"), REFUSED)
def test_refused(sites: tuple[Site, ...], sentence: str) -> None:
    refused(model_of(), At(places=sites), UnsupportedSiteError, sentence)


def test_a_canvas_that_is_not_there() -> None:
    model = model_of()
    with pytest.raises(UnsupportedSiteError, match="writes its answer in denoising steps"):
        foveate.compress(model, Recall())
    with pytest.raises(UnsupportedModelError, match="is a part of a 'diffusion_gemma' model: give the whole one"):
        foveate.compress(model.model, Stride(keep=0.5))
    assert family_of(model.config).name == tiny.NAME
