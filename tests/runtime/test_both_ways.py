"""Language models in which images, or a whole prompt, see themselves in both directions, and layers that slide.

The reference is stock throughout: a token that has left is a key that nobody sees, at the prompt and at every step after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pytest
import test_tiles
import tiny
import torch
from calls import HANDS_OVER_FEATURES, ROWS, chunks, close, generate
from compared import depends_on_text, sites_of
from plans import PLANS, plan
from probes.synthetic import Received
from torch import Tensor, nn
from transformers import DynamicCache, PaliGemmaConfig

import foveate
from foveate import Host, Method, Reduction, Site, Tokens

GEMMA = tiny.gemma.FAMILIES
ONE_WAY = {"paligemma": 1, "gemma3": 0}  # the token type of text that sees backwards only
METHODS = [foveate.Random(layer=0, ratio=0.4), foveate.Random(layer=3, ratio=0.4), foveate.Stride(layers=(0, 2, 4))]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name()}-{len(sites_of(method))}")


def dropped(visual: Tensor, visits: Sequence[Any]) -> list[Tensor]:
    """``(B, L)`` for every decoder layer: the tokens that the visits have dropped before it."""
    gone, found = torch.zeros_like(visual), []
    for layer in range(tiny.LAYERS):
        for visit in visits:
            if visit.site == f"decoder {layer}":
                kept = [i in left for left, (h, w) in zip(visit.kept, visit.shapes, strict=True) for i in range(h * w)]
                gone = visual.clone()
                gone[visual] = ~torch.tensor(kept)
        found.append(gone)
    return found


def hide(model: Any, gone: Sequence[Tensor]) -> list[Any]:
    """Nobody sees the keys ``gone[layer] (B, T)``. Masks that stock code leaves out are causal here."""

    def hook(gone: Tensor, module: Any, args: Any, kwargs: Any) -> Any:
        mask, n = kwargs["attention_mask"], args[0].shape[1]
        if mask is None:
            mask = torch.ones(n, gone.shape[1]).tril(gone.shape[1] - n).bool()[None, None]
        first = gone.shape[1] - mask.shape[-1]  # a window's mask begins later
        lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = mask.expand(len(gone), -1, -1, -1).masked_fill(gone[:, None, None, first:], lowest)
        return args, {**kwargs, "attention_mask": mask}

    layers = model.model.language_model.layers
    return [
        layer.register_forward_pre_hook(lambda *given, now=now: hook(now, *given), with_kwargs=True)
        for layer, now in zip(layers, gone, strict=True)
    ]


def check(model: Any, family: str, batch: Any, method: Method, steps: int = 3) -> None:
    """The prompt, and steps that follow it, against stock with hidden keys."""
    visual = tiny.visual_mask(family, batch)
    ids = torch.randint(12, len(tiny.TOKEN_ID), (len(visual), steps), generator=torch.Generator().manual_seed(1))

    def run() -> list[Tensor]:
        cache = DynamicCache(config=model.config)
        logits = [model(**batch, past_key_values=cache).logits]
        present = batch["attention_mask"]
        for i in range(steps):
            present = nn.functional.pad(present, (0, 1), value=1)
            if hooks:
                for hook in hooks:
                    hook.remove()
                hooks[:] = hide(model, [nn.functional.pad(each, (0, i + 1)) for each in gone])
            logits.append(model(input_ids=ids[:, i : i + 1], attention_mask=present, past_key_values=cache).logits)
        return logits

    hooks: list[Any] = []
    with torch.no_grad():
        with foveate.compress(model, method) as handle:
            first, *ours = run()
            visits = handle.report().visits
        gone = dropped(visual, visits)
        assert bool(gone[-1].any())
        hooks[:] = hide(model, gone)
        expected, *stock = run()
        for hook in hooks:
            hook.remove()
    text = ~visual & batch["attention_mask"].bool()
    close(first[text], expected[text])
    for a, b in zip(ours, stock, strict=True):
        close(a, b)


@methods
@pytest.mark.parametrize("family", GEMMA)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_dropped_token_is_a_masked_key_of_every_step(family: str, impl: str, method: Method, side: str) -> None:
    check(tiny.model(family, impl), family, tiny.inputs(family, ROWS[family], padding_side=side), method)


@methods
def test_images_slide_out_of_the_window(impl: str, method: Method) -> None:
    batch = tiny.inputs("gemma3", ROWS["gemma3"])
    check(tiny.model("gemma3", impl), "gemma3", batch, method, steps=tiny.gemma.WINDOW + 5)


@methods
@pytest.mark.parametrize("family", GEMMA)
@pytest.mark.parametrize("what", ["a suffix", "no types", "no types, no padding"])
def test_what_a_prompt_may_say_of_itself(family: str, impl: str, method: Method, what: str) -> None:
    """A suffix sees the prefix and what is before it; without types, stock code decides, and differently in each kernel."""
    rows = [[3, "image", 5], [3, "image", 5]] if what == "no types, no padding" else ROWS[family]
    model, batch = tiny.model(family, impl), tiny.inputs(family, rows)
    if what == "a suffix":
        batch["token_type_ids"][:, -3:] = ONE_WAY[family]
    else:
        del batch["token_type_ids"]
    if what == "no types, no padding" and family == "paligemma" and impl == "sdpa":
        pytest.skip("stock leaves the mask out, and means both directions: see the next test")
    check(model, family, batch, method)


@pytest.mark.parametrize("rows", [[[3, "image", 5]], [[3, "image", 5], [3, "image", 5]], [[2, "image", 4, "image", 1]]])
def test_a_mask_that_is_left_out_means_both_directions(rows: Any) -> None:
    """PaliGemma without types or padding under sdpa: every token sees every other one that is left, though rows differ."""

    @dataclass(frozen=True)
    class Uneven(Method):
        def sites(self, host: Host) -> Sequence[Site]:
            return [Site("decoder", 1)]

        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            return tokens.keep_mask(tokens.index % (2 + tokens.segment % 2) == 0)

    model, batch = tiny.model("paligemma"), tiny.inputs("paligemma", rows)
    del batch["token_type_ids"]
    visual = tiny.visual_mask("paligemma", batch)
    with torch.no_grad():
        with foveate.compress(model, Uneven()) as handle:
            ours = model(**batch).logits
            gone = dropped(visual, handle.report().visits)
        hooks = [
            layer.register_forward_pre_hook(
                lambda module, args, kwargs, now=now: (
                    args,
                    {**kwargs, "attention_mask": ~now[:, None, None].expand(-1, -1, now.shape[1], -1)},
                ),
                with_kwargs=True,
            )
            for layer, now in zip(model.model.language_model.layers, gone, strict=True)
        ]
        stock = model(**batch).logits
        for hook in hooks:
            hook.remove()
    close(ours[~visual], stock[~visual])


@pytest.mark.parametrize("family", GEMMA)
def test_a_later_turn_is_that_of_stock_with_hidden_keys(family: str, impl: str) -> None:
    """A turn sees the survivors of the turn before; its own image, too, is reduced, and sees itself."""
    if tiny.slides(family) and not HANDS_OVER_FEATURES:
        pytest.skip("the masks of this transformers do not fit the sliding layers of a later turn")
    model, both = tiny.model(family, impl), tiny.inputs(family, [[3, "image", 5, "image", 4]])
    visual = tiny.visual_mask(family, both)
    places = visual[0].nonzero().flatten()
    cut = int(places[len(places) // 2]) - 2
    types, half = both["token_type_ids"], len(both["pixel_values"]) // 2

    def run() -> list[Tensor]:
        cache = DynamicCache(config=model.config)
        logits = []
        for i, (a, b) in enumerate([(0, cut), (cut, visual.shape[1])]):
            pixels = both["pixel_values"][i * half : (i + 1) * half]
            given = dict(input_ids=both["input_ids"][:, a:b], pixel_values=pixels, token_type_ids=types[:, :b])
            hooks = hide(model, [each[:, :b] for each in gone]) if gone else []
            logits.append(model(**given, attention_mask=torch.ones(1, b), past_key_values=cache).logits)
            visits.append(handle.report().visits if handle else ())
            for hook in hooks:
                hook.remove()
        return logits

    gone: list[Tensor] = []
    visits: list[Any] = []
    with torch.no_grad():
        with foveate.compress(model, foveate.Stride(layers=(0, 3))) as handle:
            ours = run()
        handle, parts = None, []  # type: ignore[assignment]
        for (a, b), seen in zip([(0, cut), (cut, visual.shape[1])], visits[:2], strict=True):
            parts.append(dropped(visual[:, a:b], seen))
        gone = [torch.cat(both_turns, 1) for both_turns in zip(*parts, strict=True)]
        stock = run()
    for mine, theirs in zip(ours, stock, strict=True):
        text = ~visual[:, :cut] if mine.shape[1] == cut else ~visual[:, cut:]
        close(mine[text], theirs[text])


@chunks
@pytest.mark.parametrize("chunk", [5, 11, 64])
@pytest.mark.parametrize("family", GEMMA)
def test_chunks_of_a_prompt_see_what_stock_lets_them_see(family: str, chunk: int) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    options: Any = dict(output_logits=True, return_dict_in_generate=True, prefill_chunk_size=chunk)
    with torch.no_grad():
        stock: Any = generate(model, batch, **options)
        for method in (foveate.Stride(ratio=1.0, layers=(0, 2)), foveate.DivPrune(keep=1.0)):
            with foveate.compress(model, method):
                ours: Any = generate(model, batch, **options)
            for a, b in zip(ours.logits, stock.logits, strict=True):
                assert torch.equal(a, b)


def test_positions_of_each_kind_of_layer(impl: str) -> None:
    """Renumbered tokens are those of a shorter prompt, in full and in sliding layers, whose rotary embeddings differ."""
    family = "gemma3"
    model, batch = tiny.model(family, impl), tiny.inputs(family, [[2, "image", 4, "image", 7]])
    visual = tiny.visual_mask(family, batch)[0]
    places, stays = visual.nonzero().flatten(), torch.ones(len(visual), dtype=torch.bool)
    stays[places[places % 2 == 1]] = False

    class Even(foveate.Stride):
        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            return tokens.keep_mask(places % 2 == 0)

    def windows(module: Any, args: Any, kwargs: Any) -> Any:
        """Windows of the survivors' own positions, instead of those of the shorter prompt."""
        if module.self_attn.is_sliding:
            at = stays.nonzero().flatten()
            near = (at[:, None] - at < tiny.gemma.WINDOW)[None, None]
            block = kwargs["attention_mask"]
            image = visual[at]
            mine = torch.cumsum((image & ~torch.cat([image[:1] & False, image[:-1]])).int(), 0) * image
            seen = ((at[:, None] >= at) | ((mine[:, None] == mine) & image & image[:, None])) & near
            lowest = torch.finfo(torch.float32).min
            new = seen if block.dtype == torch.bool else torch.zeros(seen.shape).masked_fill(~seen, lowest)
            kwargs = {**kwargs, "attention_mask": new}
        return args, kwargs

    with torch.no_grad():
        with foveate.compress(model, Even(layers=(0,), positions="renumber")):
            ours = model(**batch).logits[0][stays & ~visual]
        features = model.get_image_features(batch["pixel_values"]).pooler_output.flatten(0, 1)
        embeds = model.get_input_embeddings()(batch["input_ids"])[0].clone()
        embeds[visual] = features
        hooks = [
            layer.register_forward_pre_hook(windows, with_kwargs=True) for layer in model.model.language_model.layers
        ]
        shorter = dict(inputs_embeds=embeds[stays][None], token_type_ids=batch["token_type_ids"][:, stays])
        stock = model(**shorter).logits[0][~visual[stays]]
        for hook in hooks:
            hook.remove()
    close(ours, stock)


def test_flash_kernels_do_not_slide_over_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.runtime.arguments.real_implementation", lambda config: "flash_attention_2")
    model = tiny.model("gemma3")
    long, short = (tiny.inputs("gemma3", [row]) for row in (ROWS["gemma3"][0], [1, "image"]))
    with torch.no_grad(), foveate.compress(model, foveate.Stride(layers=(0,))):
        with pytest.raises(foveate.FoveateError, match="use sdpa or eager"):
            model(**long)
        assert short["input_ids"].shape[1] <= tiny.gemma.WINDOW
        model(**short)


# -- PaliGemma 2: the same on Gemma 2, with sliding layers and capped logits ----------------------------------------------


@cache
def on_gemma2() -> Any:
    config = tiny.config("paligemma")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    text = {name: getattr(config.text_config, name) for name in (*names, "num_key_value_heads", "pad_token_id")}
    text |= dict(model_type="gemma2", sliding_window=tiny.gemma.WINDOW, attn_logit_softcapping=2.0, bos_token_id=None)
    width = text["hidden_size"]
    around = dict(hidden_size=width, projection_dim=width, image_token_index=config.image_token_id)
    text |= dict(eos_token_id=None, query_pre_attn_scalar=16)
    return tiny.build(
        PaliGemmaConfig(vision_config=config.vision_config.to_dict(), text_config=text, **around), "eager"
    )


@plan
def test_on_gemma2(plan: str) -> None:
    model, rows = on_gemma2(), ROWS["paligemma"]
    batch = tiny.inputs("paligemma", rows)
    why = (
        "not sliding ones|forgets by itself|a sliding layer of this model has no room|layer 0 of sliding_attention|"
        "which frames are of one video is known nowhere"
    )
    said = ""
    try:
        foveate.compress(model, PLANS[plan]).remove()
    except foveate.FoveateError as error:
        said = str(error)
    if said:
        assert re.search(why, said)
        return
    assert not any(site.at == "decode" for site in PLANS[plan].sites(Host("paligemma", 4, 6, True)))
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together = model(**batch).logits
        for i in range(len(rows)):
            alone = tiny.inputs("paligemma", rows, only=i)
            text = ~tiny.visual_mask("paligemma", alone)[0]
            close(together[i][batch["attention_mask"][i].bool()][text], model(**alone).logits[0][text])
        if depends_on_text(PLANS[plan]):
            return
        steps: Any = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        length = batch["input_ids"].shape[1]
        full = model(**tiny.longer("paligemma", batch, steps.sequences)).logits
        for step in range(4):
            close(full[:, length - 1 + step], steps.logits[step])


@methods
def test_a_dropped_token_on_gemma2_is_a_masked_key(method: Method) -> None:
    check(on_gemma2(), "paligemma", tiny.inputs("paligemma", ROWS["paligemma"]), method)


def test_signals_are_of_the_attention_as_it_is() -> None:
    """Capped where stock code caps: what is read is what eager attention returns."""
    model, batch = on_gemma2(), tiny.inputs("paligemma", ROWS["paligemma"][:2])

    class Hear(Received):
        heard: ClassVar[list[Tokens]] = []

        def score(self, tokens: Tokens, site: Site) -> Tensor:
            Hear.heard.append(tokens)
            return super().score(tokens, site)

    with torch.no_grad():
        weights = model(**batch, output_attentions=True).attentions[2]
        with foveate.compress(model, Hear(layer=3)):
            model(**batch)
    visual, real = tiny.visual_mask("paligemma", batch), batch["attention_mask"].bool()
    (tokens,) = Hear.heard
    close(tokens.last_row, weights[:, :, -1].transpose(1, 2)[visual], 1e-5)
    paid = (weights.mean(1) * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
    close(tokens.received, paid[visual], 1e-5)


# -- what is left learns, and runs without a cache ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", GEMMA)
def test_gradients_go_through_what_is_left(family: str, dtype: torch.dtype) -> None:
    test_tiles.test_gradients_go_through_what_is_left(family, dtype)


@pytest.mark.parametrize("family", GEMMA)
def test_without_a_cache(family: str, impl: str) -> None:
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, foveate.Stride(layers=(0, 3), positions="renumber")):
        close(model(**batch, use_cache=False).logits, model(**batch).logits)


# -- inputs ---------------------------------------------------------------------------------------------------------------


def test_paligemma_inputs_are_those_of_its_processor() -> None:
    """Rows without an image, which it does not take, are made by hand here; the others in the same batch must not differ."""
    rows = ROWS["paligemma"]
    mixed = tiny.inputs("paligemma", rows)
    made = tiny.inputs("paligemma", rows[:2])
    assert torch.equal(mixed["pixel_values"], made["pixel_values"])
    for i in range(2):
        there, here = (batch["input_ids"][i][batch["attention_mask"][i].bool()] for batch in (mixed, made))
        assert torch.equal(there, here)
    assert not made["token_type_ids"].any()
    assert not mixed["token_type_ids"].any()
