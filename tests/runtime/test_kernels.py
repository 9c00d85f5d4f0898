"""Attention kernels beside sdpa and eager: sliding layers, packed samples, padding, and the real kernels where there is a GPU.

That flex and flash say what sdpa says of the same tokens is a property of the contract.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, generate
from compared import depends_on_text, said, same
from plans import PLANS
from stand_ins import FLEX, Flash, flash_attention, uncompiled, with_flash, with_flex
from test_caches import TYPES, WINDOW
from test_samples import packed, text_of
from transformers import LlavaConfig

import foveate
from foveate.errors import UnsupportedModelError
from foveate.runtime.masks import View, derive

FAMILIES = ("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl")
HAS_GPU = torch.cuda.is_available()
HAS_FLASH = HAS_GPU and importlib.util.find_spec("flash_attn") is not None
FEW = ["cascade", "signals", "visionzip", "vtw", "renumber", "luvc", "ipcv", "blocks"]


# -- flex ---------------------------------------------------------------------------------------------------------------


@cache
def sliding(impl: str) -> Any:
    """LLaVA, every second layer of whose language model slides."""
    config = tiny.config("llava")
    text = config.text_config.to_dict() | dict(model_type="qwen2", layer_types=TYPES, sliding_window=WINDOW)
    text |= dict(use_sliding_window=True, max_window_layers=0)
    for name in ("rope_parameters", "architectures", "head_dim"):
        text.pop(name, None)
    whole = LlavaConfig(
        vision_config=config.vision_config, text_config=text, image_token_index=config.image_token_index
    )
    return tiny.build(whole, impl)


@pytest.mark.parametrize("plan", FEW)
def test_flex_with_sliding_layers(plan: str) -> None:
    batch, found = tiny.inputs("llava", ROWS["llava"]), []
    for impl in ("flex_attention", "sdpa"):
        model = sliding(impl)
        with torch.no_grad(), uncompiled(), foveate.compress(model, PLANS[plan]):
            found.append(said("llava", model, batch))
    same(*found)


@pytest.mark.parametrize("family", FLEX)
def test_flex_with_nothing_removed_is_stock(family: str) -> None:
    model, batch = with_flex(family), tiny.inputs(family, ROWS[family])
    with uncompiled():
        logits, ids = tiny.text_logits(model, batch), generate(model, batch)
        with foveate.compress(model, foveate.IPCV(ratio=1.0) + foveate.FastV(ratio=1.0)):
            assert torch.equal(tiny.text_logits(model, batch), logits)
            assert torch.equal(generate(model, batch), ids)


def test_flex_on_a_cpu_is_refused_with_a_sentence() -> None:
    """As it would be compiled there."""
    view = View(torch.arange(4)[None], None)
    with pytest.raises(UnsupportedModelError, match=r"flex attention on a CPU.*use sdpa"):
        derive(None, view, replace(view, valid=torch.ones(1, 4).bool()), 4, 0, "flex", torch.float32)


def test_families_without_flex_say_so(family: str) -> None:
    """Where stock code has no flex attention, it says that itself."""
    if tiny.CLASSES[family]._supports_flex_attn:
        pytest.skip("it has")
    with pytest.raises(ValueError, match="flex_attention"):
        tiny.model(family, fresh=True).set_attn_implementation("flex_attention")


# -- flash --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def flash() -> Iterator[Flash]:
    with flash_attention() as kernel:
        yield kernel


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("plan", ["cascade", "fastv", "visionzip"])
def test_flash_of_packed_samples(plan: str) -> None:
    """Position ids of reduced layers have gaps, which it would take for borders: it is told the lengths in their place."""
    row, alone = packed("llava", tiny.model("llava"))
    found = []
    for model in (with_flash("llava"), tiny.model("llava")):
        with torch.no_grad(), foveate.compress(model, PLANS[plan]):
            found.append(torch.cat(text_of("llava", model(**row, use_cache=False).logits, alone)))
    close(*found)
    with torch.no_grad(), foveate.compress(with_flash("llava"), PLANS[plan]):
        two = {name: torch.cat([value, value]) for name, value in row.items()}
        with pytest.raises(UnsupportedModelError, match="pack all samples into one row"):
            with_flash("llava")(**two, use_cache=False)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("plan", ["ipcv", "adsc"])
def test_positions_of_several_axes_are_no_borders(plan: str) -> None:
    """Stock code hands kernels those of all axes, in which a lone prompt looks like many packed ones: with a method it does
    not, in layers that have all tokens neither, and packed samples still have their borders."""
    family = "glm4v_moe"
    model, alone = with_flash(family), tiny.inputs(family, ROWS[family], only=0)
    with pytest.raises(AssertionError, match="look like packed sequences"):
        model(**alone)
    row, samples = packed(family, tiny.model(family))
    found = []
    for each in (model, tiny.model(family)):
        with torch.no_grad(), foveate.compress(each, PLANS[plan]):
            together = text_of(family, each(**row, use_cache=False).logits, samples)
            found.append(torch.cat([tiny.text_logits(each, alone), *together]))
    close(*found)


@pytest.mark.parametrize("plan", ["cascade", "luvc", "adsc", "visionzip"])
def test_flash_stays_free_of_padding(family: str, plan: str, flash: Flash) -> None:
    """Alone, a row has no mask in any layer, however many tokens each has; in a batch, keys present in two dimensions."""
    model, rows = with_flash(family), ROWS[family]
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        model(**tiny.inputs(family, rows, only=0))
        assert flash.masks
        assert all(mask is None for mask in flash.masks)
        flash.masks.clear()
        generate(model, tiny.inputs(family, rows))
        masks = [mask for mask in flash.masks if mask is not None]
        assert masks
        assert all(bool(mask.any(0).all()) for mask in masks), "a column that no row has"


@pytest.mark.skipif(not HAS_GPU, reason="kernels that need a GPU")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("impl", ["flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("plan", ["cascade", "signals", "ipcv"])
def test_on_a_gpu(family: str, impl: str, plan: str) -> None:
    if impl == "flash_attention_2" and not HAS_FLASH:
        pytest.skip("flash_attn is not installed")
    if impl == "flex_attention" and not tiny.CLASSES[family]._supports_flex_attn:
        pytest.skip("stock code has no flex attention here")
    batch = {k: v.cuda() for k, v in tiny.inputs(family, ROWS[family]).items()}
    batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    text = (~tiny.visual_mask(family, batch) & batch["attention_mask"].bool()).cuda()
    found = []
    for name in (impl, "sdpa"):
        model = tiny.model(family, fresh=True).to("cuda", torch.bfloat16)
        model.set_attn_implementation(name)
        with torch.no_grad(), foveate.compress(model, PLANS[plan]) as handle:
            found.append(model(**batch).logits[text].float())
            assert handle.report().kv_ratio <= 1
    if not depends_on_text(PLANS[plan]):
        assert torch.nn.functional.cosine_similarity(*found).mean() > 0.99
