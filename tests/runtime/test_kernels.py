"""Attention kernels beside sdpa and eager: flex and flash say what sdpa says of the same tokens.

Flex runs uncompiled here: compiling its kernels takes minutes on a CPU. Flash is a stand-in with the interface of
transformers' own, which keeps every promise to the real one: no mask but ``(B, K)`` keys present, no padding where there is
none. Where there is a GPU, the real ones run, too.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import tiny
import torch
from plans import PLANS, ROWS, close, depends_on_text
from test_caches import TYPES, WINDOW
from test_generate import HANDS_OVER_FEATURES
from test_identity import generate
from test_samples import packed, text_of
from torch import Tensor
from torch.nn.attention import flex_attention
from transformers import LlavaConfig, masking_utils
from transformers.integrations import flex_attention as flex
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
from foveate.errors import UnsupportedModelError
from foveate.runtime.masks import View, derive

FAMILIES = ("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl")
HAS_GPU = torch.cuda.is_available()
HAS_FLASH = HAS_GPU and importlib.util.find_spec("flash_attn") is not None
FEW = ["cascade", "signals", "visionzip", "vtw", "renumber", "luvc", "ipcv", "blocks"]
LOGITS: dict[str, Any] = dict(output_logits=True, return_dict_in_generate=True)


def compare(family: str, plan: str, ours: Any, reference: Any) -> None:
    """Logits of the text in one forward, and of every generated token, in a ragged padded batch."""
    batch = tiny.inputs(family, ROWS[family])
    text = ~tiny.visual_mask(family, batch) & batch["attention_mask"].bool()
    found = []
    for model in (ours, reference):
        with torch.no_grad(), foveate.compress(model, PLANS[plan]) as handle:
            logits = model(**batch).logits[text]
            lengths = handle.report().kv_lengths
            said: Any = generate(model, batch, **LOGITS)
            found.append((logits, said.sequences, said.logits, lengths))
    close(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    for a, b in zip(found[0][2], found[1][2], strict=True):
        close(a, b)
    assert found[0][3] == found[1][3]


# -- flex ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, training: bool = False, **options: Any) -> Any:
        return flex_attention.flex_attention(query, key, value, **options)

    monkeypatch.setattr(flex, "compile_friendly_flex_attention", attend)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    made = masking_utils.create_block_mask
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda *a, **k: made(*a, **(k | {"_compile": False})))


@cache
def with_flex(family: str) -> Any:
    return tiny.build(tiny.config(family), "flex_attention")


@cache
def sliding(impl: str) -> Any:
    """LLaVA, every second layer of whose language model slides."""
    config = tiny.config("llava")
    text = config.text_config.to_dict() | dict(model_type="qwen2", layer_types=TYPES, sliding_window=WINDOW)
    text |= dict(use_sliding_window=True, max_window_layers=0)
    for name in ("rope_parameters", "architectures", "head_dim"):
        text.pop(name, None)
    whole = LlavaConfig(vision_config=config.vision_config, text_config=text, image_token_id=config.image_token_id)
    return tiny.build(whole, impl)


FLEX = [family for family in ("llava", "llava_next", "internvl") if tiny.CLASSES[family]._supports_flex_attn]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FLEX)
@pytest.mark.parametrize("plan", FEW)
def test_flex(family: str, plan: str) -> None:
    compare(family, plan, with_flex(family), tiny.model(family))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("plan", FEW)
def test_flex_with_sliding_layers(plan: str) -> None:
    compare("llava", plan, sliding("flex_attention"), sliding("sdpa"))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FLEX)
def test_flex_with_nothing_removed_is_stock(family: str) -> None:
    model, batch = with_flex(family), tiny.inputs(family, ROWS[family])
    logits, said = tiny.text_logits(model, batch), generate(model, batch)
    with foveate.compress(model, foveate.IPCV(keep=1.0) + foveate.FastV(keep=1.0)):
        assert torch.equal(tiny.text_logits(model, batch), logits)
        assert torch.equal(generate(model, batch), said)


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


class Flash:
    """What ``flash_attention_forward`` of transformers takes and gives, row by row with sdpa; it notes what it was given."""

    def __init__(self) -> None:
        self.masks: list[Tensor | None] = []

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        assert attention_mask is None or attention_mask.dim() == 2
        assert query.shape[2] > 0
        attend = partial(self._row, kwargs.get("scaling"), kwargs.get("sliding_window"))
        causal = kwargs.get("is_causal")
        causal = module.is_causal if causal is None else causal
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        if kwargs.get("cu_seq_lens_q") is not None:
            ends, key_ends = (kwargs[f"cu_seq_lens_{x}"].tolist() for x in "qk")
            parts = zip(ends, ends[1:], key_ends, key_ends[1:])
            out = [attend(query[0, :, a:b], key[0, :, c:d], value[0, :, c:d], causal) for a, b, c, d in parts]
            return torch.cat(out, dim=1).transpose(0, 1)[None], None
        ids = kwargs.get("position_ids")
        if attention_mask is None and ids is not None and len(query) == 1 and query.shape[2] > 1:
            ids = ids if ids.dim() == 2 else ids[0]
            starts = (ids[0] == 0).nonzero().flatten().tolist()
            if len(starts) > 1:  # samples that are packed into the row
                ends = zip(starts, [*starts[1:], query.shape[2]])
                out = [attend(query[0, :, a:b], key[0, :, a:b], value[0, :, a:b], causal) for a, b in ends]
                return torch.cat(out, dim=1).transpose(0, 1)[None], None
            steps = ids.diff()
            assert not bool((steps != 1).any()), "gaps in positions look like packed sequences"
        if getattr(module, "layer_idx", None) is not None:  # of the language model
            self.masks.append(attention_mask)
        out = query.new_zeros(query.shape)
        for b in range(len(query)):
            there = torch.ones(key.shape[2], dtype=torch.bool) if attention_mask is None else attention_mask[b].bool()
            here = there[-query.shape[2] :]
            out[b][:, here] = attend(query[b][:, here], key[b][:, there], value[b][:, there], causal)
        return out.transpose(1, 2), None

    @staticmethod
    def _row(scaling: Any, window: int | None, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        mask = None
        if causal:
            distance = torch.arange(q.shape[1])[:, None] + (k.shape[1] - q.shape[1]) - torch.arange(k.shape[1])
            mask = (distance >= 0) & (distance < (window or k.shape[1] + 1))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Flash:
    kernel = Flash()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", kernel)
    return kernel


@cache
def with_flash(family: str) -> Any:
    if family in (*tiny.gemma.FAMILIES, *tiny.gemma4.FAMILIES):
        pytest.skip("stock code's flash attention does not see images both ways; test_both_ways has what is refused")
    if family in tiny.PIXTRAL and not HANDS_OVER_FEATURES:
        pytest.skip("this transformers does not tell kernels where images end; test_rows has what is refused")
    model = tiny.model(family, fresh=True)
    for module in model.modules():
        if getattr(getattr(module, "config", None), "_attn_implementation_internal", None) is not None:
            module.config._attn_implementation_internal = "flash_attention_2"
    return model


@pytest.mark.parametrize("plan", FEW)
def test_flash(family: str, plan: str, flash: Flash) -> None:
    compare(family, plan, with_flash(family), tiny.model(family))


@pytest.mark.parametrize("plan", ["cascade", "fastv", "visionzip"])
def test_flash_of_packed_samples(plan: str, flash: Flash) -> None:
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


# Stock glm4v_moe hands the positions of all three axes to the kernel, where a lone prompt then counts as packed ones: wrong
# in stock as well, and not for a layer that no method has touched yet to mend.
COUNTS_AS_PACKED = {("glm4v_moe", "adsc")}


@pytest.mark.parametrize("plan", ["cascade", "luvc", "adsc", "visionzip"])
def test_flash_stays_free_of_padding(family: str, plan: str, flash: Flash) -> None:
    """Alone, a row has no mask in any layer, however many tokens each has; in a batch, keys present in two dimensions."""
    if (family, plan) in COUNTS_AS_PACKED:
        pytest.skip("stock code takes its positions for packed sequences before the first cut")
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


@pytest.mark.usefixtures("flash")
def test_flash_cannot_weigh_merged_tokens(family: str) -> None:
    model, batch = with_flash(family), tiny.inputs(family, ROWS[family])
    with foveate.compress(model, PLANS["tome"]), pytest.raises(UnsupportedModelError, match="flash_attention_2 cannot"):
        model(**batch)


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
    if not depends_on_text(plan):
        assert torch.nn.functional.cosine_similarity(*found).mean() > 0.99
