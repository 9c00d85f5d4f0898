"""Decoder layers that attend to the keys and values of earlier ones, and see what those see: nothing leaves before them.

Of the tiny model's eight layers 0, 2, 3, 4 and 6 slide; 6 and 7 attend to the keys of 4 and 5.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tiny
import torch
from calls import HANDS_OVER_FEATURES, ROWS, chunks, close, counted, generate
from plans import FULL, PLANS
from probes.synthetic import Received
from test_cost import forward, total
from test_cost import generate as stock_generate
from torch import Tensor

import foveate
from foveate import FastV, Random, Site, Stride
from foveate.errors import InputError, UnsupportedModelError, UnsupportedSiteError

NAME = "gemma4"
SHARED = 2
LAYERS = tiny.LAYERS + SHARED
METHODS = {
    **{name: PLANS[name] for name in ("stride", "cascade", "fastv", "vtw", "divprune", "renumber")},
    "between": Stride(ratio=0.5, layers=(5,)),  # after the last sliding layer with keys, before the last full one
    "late": Stride(ratio=0.5, layers=(0, 5), positions="renumber"),
    "signals": Received(layer=5),
}
method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
#: of larger models: no embeddings for layers, one projection for keys and values, experts
OTHER: dict[str, dict[str, Any]] = {
    "plain": dict(hidden_size_per_layer_input=0),
    "keys are values": dict(attention_k_eq_v=True, num_global_key_value_heads=1),
    "experts": dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=24),
    "causal": dict(use_bidirectional_attention=None),
}


@cache
def build(impl: str = "sdpa", shared: int = SHARED, **text: Any) -> Any:
    return tiny.build(tiny.config(NAME, shared=shared, **text), impl)


@pytest.fixture
def model(impl: str) -> Any:
    return build(impl)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return tiny.inputs(NAME, ROWS[NAME])


def logits_of(model: Any, batch: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch, **options).logits


def test_keys_are_shared_as_these_tests_believe(model: Any) -> None:
    layers = tiny.lm(model).layers
    assert [layer.self_attn.is_kv_shared_layer for layer in layers] == [False] * tiny.LAYERS + [True] * SHARED
    assert [layer.self_attn.is_sliding for layer in layers] == [True, False, True, True, True, False, True, False]
    assert [layer.self_attn.store_full_length_kv for layer in layers[4:]] == [True, True, False, False]


@pytest.mark.parametrize("full", ["stride", "fastv", "renumber", "divprune"])
def test_nothing_removed_is_stock(model: Any, batch: dict[str, Tensor], full: str) -> None:
    with torch.no_grad():
        logits, ids = model(**batch).logits, generate(model, batch)
        with foveate.compress(model, FULL[full]):
            assert torch.equal(model(**batch).logits, logits)
            assert torch.equal(generate(model, batch), ids)


@pytest.mark.parametrize("layer", [0, 1, 4, 5])
def test_a_dropped_token_is_a_masked_key(impl: str, batch: dict[str, Tensor], layer: int) -> None:
    """From that layer on, and where a layer attends to the keys of another one, if it is masked there."""
    model = tiny.build(tiny.config(NAME, shared=SHARED), impl)
    with torch.no_grad(), foveate.compress(model, Random(layer=layer, ratio=0.4)) as handle:
        reduced = model(**batch).logits
        visit = handle.report().visits[0]
    visual = tiny.visual_mask(NAME, batch)
    kept: list[bool] = []
    for indices, (height, width) in zip(visit.kept, visit.shapes, strict=True):
        kept += [i in indices for i in range(height * width)]
    dropped = visual.clone()
    dropped[visual] = ~torch.tensor(kept)

    def hide(module: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"]
        lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask.masked_fill(dropped[:, None, None], lowest)}

    for i, block in enumerate(tiny.lm(model).layers):
        if {6: 4, 7: 5}.get(i, i) >= layer:
            block.register_forward_pre_hook(hide, with_kwargs=True)
    masked = logits_of(model, batch)
    text = ~visual & batch["attention_mask"].bool()
    close(reduced[text], masked[text])
    if layer == 5:  # layer 6 sees them in layer 4
        tiny.lm(model).layers[6].register_forward_pre_hook(hide, with_kwargs=True)
        assert (logits_of(model, batch) - masked)[text].abs().max() > 1e-3


@method
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_is_its_rows(model: Any, method: foveate.Method, side: str) -> None:
    rows = ROWS[NAME]
    batch = tiny.inputs(NAME, rows, padding_side=side)
    with foveate.compress(model, method):
        together = logits_of(model, batch)
        for i in range(len(rows)):
            alone = tiny.inputs(NAME, rows, only=i)
            text = ~tiny.visual_mask(NAME, alone)[0]
            close(together[i][batch["attention_mask"][i].bool()][text], logits_of(model, alone)[0][text])


@method
def test_generation_of_a_batch_is_that_of_its_rows(
    model: Any, batch: dict[str, Tensor], method: foveate.Method
) -> None:
    """Where stock code goes on with the last row alone."""
    options = dict(output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), foveate.compress(model, method):
        full = model(**batch).logits[:, -1]
        together: Any = generate(model, batch, **options)
        close(together.logits[0], full)
        for i in range(len(ROWS[NAME])):
            alone: Any = generate(model, tiny.inputs(NAME, ROWS[NAME], only=i), **options)
            assert torch.equal(together.sequences[i, -4:], alone.sequences[0, -4:])
            for step in range(4):
                close(together.logits[step][i], alone.logits[step][0])


@method
def test_a_cached_step_is_a_full_forward(model: Any, batch: dict[str, Tensor], method: foveate.Method) -> None:
    if isinstance(method, (FastV, Received)):
        pytest.skip("a longer prompt has another last token, which chooses other tokens")
    with torch.no_grad(), foveate.compress(model, method):
        steps: Any = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        length = batch["input_ids"].shape[1]
        full = model(**tiny.longer(NAME, batch, steps.sequences)).logits
        for step in range(4):
            close(full[:, length - 1 + step], steps.logits[step])


@method
def test_attention_implementations_agree(batch: dict[str, Tensor], method: foveate.Method) -> None:
    logits = []
    for impl in ("sdpa", "eager"):
        with foveate.compress(build(impl), method):
            logits.append(logits_of(build(impl), batch))
    text = ~tiny.visual_mask(NAME, batch) & batch["attention_mask"].bool()
    close(logits[0][text], logits[1][text])


@pytest.mark.parametrize("rows", [None, [2, 1]], ids=["batch", "alone"])
@pytest.mark.parametrize("n", [1, 12, 32, 100])
def test_the_last_rows_are_those_of_all(
    model: Any, impl: str, batch: dict[str, Tensor], n: int, rows: list[int] | None
) -> None:
    """However many are asked for: text alone, some of the image, all that there is; each method has some of these."""
    if rows is not None:
        batch = tiny.inputs(NAME, [[3, "image", 5]])
    inner, turn = tiny.base(model), n + (rows is None) + 2 * (impl == "eager")
    methods = list(METHODS.values())[turn % 3 :: 3]
    with torch.no_grad():
        stock = inner(**batch, logits_to_keep=n).last_hidden_state.shape
        for method in methods:
            with foveate.compress(model, method) as handle:
                all_rows, some = logits_of(model, batch)[:, -n:], logits_of(model, batch, logits_to_keep=n)
                assert some.shape == all_rows.shape
                text = (~tiny.visual_mask(NAME, batch) & batch["attention_mask"].bool())[:, -n:]
                close(some[text], all_rows[text])
                assert inner(**batch, logits_to_keep=n).last_hidden_state.shape == stock
                if stock[1] == 1:
                    assert handle.report().layer_tokens[-SHARED:] == (1,) * SHARED
                hidden = model(**batch, logits_to_keep=n, output_hidden_states=True)  # then nothing is left out
                assert hidden.hidden_states[-1].shape[1] == batch["input_ids"].shape[1]
                close(hidden.logits[text], all_rows[text])


def test_beams_follow_the_scores(model: Any) -> None:
    batch = tiny.inputs(NAME, [[3, (8, 8), 5]])
    with torch.no_grad(), foveate.compress(model, Stride(ratio=0.5, layers=(0, 5))):
        out: Any = generate(
            model, batch, num_beams=4, output_scores=True, return_dict_in_generate=True, length_penalty=0.0
        )
        logits = model(**tiny.longer(NAME, batch, out.sequences)).logits[0, -5:-1].log_softmax(-1)
    close(logits.gather(1, out.sequences[0, -4:, None]).sum(), out.sequences_scores[0])


@pytest.mark.skipif(
    not HANDS_OVER_FEATURES, reason="masks of this transformers do not fit the sliding layers of a later turn"
)
@pytest.mark.parametrize("name", ["stride", "cascade", "divprune", "vtw", "between", "renumber"])
@pytest.mark.parametrize("n", [0, 1, 6])
def test_a_later_turn_with_a_new_image(model: Any, name: str, n: int) -> None:
    both = tiny.inputs(NAME, [[3, "image", 5, "image", 4]])
    placeholder = both["input_ids"][0] == tiny.IMAGE_TOKEN[NAME]
    cut = int(placeholder.nonzero()[int(placeholder.sum()) // 2 - 1]) + 3
    of_text = ("input_ids", "attention_mask", "mm_token_type_ids")
    first = {key: both[key][:, :cut] for key in of_text} | tiny.of_images(NAME, both, slice(0, 1))
    second = {"input_ids": both["input_ids"][:, cut:], "attention_mask": both["attention_mask"]}
    second |= {"mm_token_type_ids": both["mm_token_type_ids"]} | tiny.of_images(NAME, both, slice(1, 2))
    with torch.no_grad(), foveate.compress(model, METHODS[name]) as handle:
        whole = model(**both)
        expected = [entry.keys.shape[-2] for entry in tiny.entries(whole.past_key_values)]
        kept = model(**first).past_key_values
        out = model(**second, past_key_values=kept, logits_to_keep=n)
        assert handle.report().visits, "the second image is reduced too"
    close(out.logits[0, -1], whole.logits[0, -1])
    assert [entry.keys.shape[-2] for entry in tiny.entries(kept)] == expected


@chunks
@pytest.mark.parametrize("chunk", [5, 11, 64])
@pytest.mark.parametrize("name", ["vtw", "tome", "visionzip", "downsample", "blocks"])
def test_chunked_prefill(impl: str, batch: dict[str, Tensor], name: str, chunk: int) -> None:
    """Of a model whose images are not seen both ways; a chunk may end in one, and ask for its last row."""
    model, method = build(impl, use_bidirectional_attention=None), PLANS[name]
    options = dict(output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), foveate.compress(model, method + Stride(ratio=1.0, layers=(5,))):
        whole: Any = generate(model, batch, **options)
        cut: Any = generate(model, batch, prefill_chunk_size=chunk, **options)
    for a, b in zip(whole.logits, cut.logits, strict=True):
        close(a, b)


def test_prompt_lookup_decoding(model: Any) -> None:
    """Several tokens at once, of which all but the right ones are taken back."""
    batch = tiny.inputs(NAME, [[3, "image", 5]])
    options: Any = dict(max_new_tokens=8, do_sample=False, bad_words_ids=[[i] for i in range(9)])
    for name in ("cascade", "between"):
        if name == "between" and not HANDS_OVER_FEATURES:
            continue  # entries that slide lose count when this transformers crops them
        method = METHODS[name]
        with torch.no_grad(), foveate.compress(model, method):
            plain = model.generate(**batch, **options)
            assert torch.equal(model.generate(**batch, **options, prompt_lookup_num_tokens=3), plain)


def test_cache_lengths_are_the_schedule(model: Any) -> None:
    batch = tiny.inputs(NAME, [[3, (8, 8), 5]])
    text = batch["input_ids"].shape[1] - 16
    with foveate.compress(model, Stride(ratio=0.5, layers=(1, 5))) as handle, torch.no_grad():
        kept = model(**batch).past_key_values
        report = handle.report()
    assert report.layer_tokens == (text + 16, *(text + 8,) * 4, *(text + 4,) * 3)
    held = [text + 16, *[text + 8] * 4, text + 4]
    window = tiny.gemma.WINDOW - 1
    slides = [True, False, True, True, True, False]
    assert list(report.kv_lengths) == [min(n, window) if slide else n for n, slide in zip(held, slides)]
    assert report.kv_lengths == tuple(entry.keys.shape[-2] for entry in tiny.entries(kept) if entry.keys is not None)


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_other_models_of_the_family(impl: str, batch: dict[str, Tensor], text: dict[str, Any]) -> None:
    shared = 0 if "hidden_size_per_layer_input" in text else SHARED  # stock code cuts what there is not
    model = build(impl, shared, **text)
    stock = logits_of(model, batch)
    with foveate.compress(model, Stride(keep=1.0)):
        assert torch.equal(logits_of(model, batch), stock)
    with foveate.compress(model, PLANS["cascade"]), torch.no_grad():
        together, first = logits_of(model, batch), generate(model, batch)
        for i in range(len(ROWS[NAME])):
            alone = tiny.inputs(NAME, ROWS[NAME], only=i)
            text_of = ~tiny.visual_mask(NAME, alone)[0]
            close(together[i][batch["attention_mask"][i].bool()][text_of], logits_of(model, alone)[0][text_of])
            assert torch.equal(generate(model, alone)[0, -4:], first[i, -4:])


def test_router_logits_want_all_tokens(batch: dict[str, Tensor]) -> None:
    if not HANDS_OVER_FEATURES:
        pytest.skip("this transformers returns none")
    model = build("sdpa", **OTHER["experts"])
    with torch.no_grad(), foveate.compress(model, Stride()):
        with pytest.raises(InputError, match="output_router_logits=False"):
            model(**batch, output_router_logits=True)
        assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize("at", [6, 7, -9, 8])
def test_nothing_leaves_before_layers_without_keys(model: Any, at: int) -> None:
    with pytest.raises(UnsupportedSiteError, match="0 to 5") as error:
        foveate.compress(model, Stride(layers=(at,)))
    assert ("attend to keys of these" in str(error.value)) == (at in (6, 7))


def test_decode_sites_want_keys_of_their_own() -> None:
    model = tiny.build(tiny.config(NAME, shared=SHARED, layer_types=["full_attention"] * LAYERS))

    class Late(Stride):
        def sites(self, host: foveate.Host) -> list[Site]:
            return [Site("decode", 2)]

    with pytest.raises(UnsupportedSiteError, match="attend to the keys of earlier ones"):
        foveate.compress(model, Late())


def test_flash_kernels_cannot_align_them(batch: dict[str, Tensor]) -> None:
    """Said before the kernel runs, so it need not be there."""
    model = tiny.build(tiny.config(NAME, shared=SHARED, sliding_window=64))
    with foveate.compress(model, METHODS["between"]), torch.no_grad():
        for layer in tiny.lm(model).layers[6:]:
            layer.self_attn.config = _Flash(layer.self_attn.config)
        with pytest.raises(UnsupportedModelError, match="reduce before layer 4 only"):
            model(**batch)


class _Flash:
    """A config that says that attention is flash."""

    def __init__(self, config: Any) -> None:
        self._config = config

    _attn_implementation = "flash_attention_2"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def test_gradients_with_and_without_checkpointing(batch: dict[str, Tensor]) -> None:
    """Embeddings for layers come by position, and get their gradients that way."""
    if not HANDS_OVER_FEATURES:
        pytest.skip("older versions run layer hooks again inside the checkpoint")
    model = tiny.build(tiny.config(NAME, shared=SHARED))
    labels = batch["input_ids"].masked_fill(tiny.visual_mask(NAME, batch), -100)
    found = []
    with foveate.compress(model, Stride(keep=0.5)):
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
                model.train()
            model.zero_grad()
            model(**batch, labels=labels, use_cache=False).loss.backward()
            found.append(tiny.lm(model).per_layer_model_projection.weight.grad.clone())
    assert found[0].abs().max() > 0
    close(found[0], found[1])


COUNTED = [PLANS[name] for name in ("cascade", "fastv", "divprune", "blocks", "downsample", "park", "renumber")]


@pytest.mark.parametrize("method", [*COUNTED, METHODS["between"]], ids=repr)
@pytest.mark.parametrize("call", [forward, stock_generate])
def test_flops_are_those_counted(model: Any, impl: str, method: foveate.Method, call: Any) -> None:
    """Also where no token leaves the language model (`park`), and where only the last row goes on."""
    batch = tiny.inputs(NAME, ROWS[NAME][:2])
    stock = counted(impl, lambda: call(model, batch))
    with foveate.compress(model, method) as handle:
        compressed = counted(impl, lambda: call(model, batch))
        report = handle.report()
    assert stock == total(report.full_flops)
    assert compressed == total(report.flops)
    sliced = call is stock_generate and HANDS_OVER_FEATURES
    assert report.full_layer_tokens[-1] == (1 if sliced else batch["input_ids"].shape[1])
