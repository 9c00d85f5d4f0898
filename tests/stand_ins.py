"""Stand-ins for what a CPU does not have: flex uncompiled, flash with the interface of the real one, a quantised cache."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from calls import HANDS_OVER_FEATURES
from torch import Tensor
from torch.nn.attention import flex_attention
from transformers import masking_utils
from transformers.cache_utils import Cache, QuantizedLayer
from transformers.integrations import flex_attention as flex
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

#: families whose stock code has flex attention, of those that are small enough
FLEX = [family for family in ("llava", "llava_next", "internvl") if tiny.CLASSES[family]._supports_flex_attn]


# -- flex ---------------------------------------------------------------------------------------------------------------


@contextmanager
def uncompiled() -> Iterator[None]:
    """Flex attention without a compiler, which takes minutes for its kernels on a CPU."""

    def attend(query: Tensor, key: Tensor, value: Tensor, training: bool = False, **options: Any) -> Any:
        return flex_attention.flex_attention(query, key, value, **options)

    made = masking_utils.create_block_mask  # type: ignore[attr-defined]
    plain = mock.patch.object(masking_utils, "create_block_mask", lambda *a, **k: made(*a, **(k | {"_compile": False})))
    debug = mock.patch.object(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with mock.patch.object(flex, "compile_friendly_flex_attention", attend), debug, plain, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def with_flex(family: str) -> Any:
    """The tiny model of a family with flex attention."""
    return tiny.build(tiny.config(family), "flex_attention")


# -- flash --------------------------------------------------------------------------------------------------------------


class Flash:
    """What ``flash_attention_forward`` of transformers takes and gives, row by row with sdpa; it notes what it was given.

    It keeps every promise to the real one: no mask but ``(B, K)`` keys present, no padding where there is none.
    """

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
            longest = kwargs.get("max_length_q")
            assert longest is None or max(b - a for a, b in zip(ends, ends[1:])) <= longest
            places = zip(ends, ends[1:], key_ends, key_ends[1:])
            parts = [attend(query[0, :, a:b], key[0, :, c:d], value[0, :, c:d], causal) for a, b, c, d in places]
            return torch.cat(parts, dim=1).transpose(0, 1)[None], None
        ids = kwargs.get("position_ids")
        if attention_mask is None and ids is not None and len(query) == 1 and query.shape[2] > 1:
            assert ids.dim() == 2, "positions of several axes look like packed sequences"
            starts = (ids[0] == 0).nonzero().flatten().tolist()
            if len(starts) > 1:  # samples that are packed into the row
                ends = zip(starts, [*starts[1:], query.shape[2]])
                parts = [attend(query[0, :, a:b], key[0, :, a:b], value[0, :, a:b], causal) for a, b in ends]
                return torch.cat(parts, dim=1).transpose(0, 1)[None], None
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


@contextmanager
def flash_attention() -> Iterator[Flash]:
    """Models of `with_flash` run with a new stand-in, which is given."""
    kernel = Flash()
    with mock.patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, {"flash_attention_2": kernel}):
        yield kernel


def why_no_flash(family: str) -> str:
    """Why a family is not asked to run with flash attention; "" where it is."""
    if tiny.looks_ahead(family):
        return "stock code's flash attention does not see images both ways; test_both_ways has what is refused"
    if "cu_seq_lens_q" in tiny.SPECS[family].tower.block_args and not HANDS_OVER_FEATURES:
        return "this transformers does not tell kernels where images end; test_rows has what is refused"
    return ""


@cache
def _with_flash(family: str) -> Any:
    model = tiny.model(family, fresh=True)
    for module in model.modules():
        if getattr(getattr(module, "config", None), "_attn_implementation_internal", None) is not None:
            module.config._attn_implementation_internal = "flash_attention_2"
    return model


def with_flash(family: str) -> Any:
    """The tiny model of a family with flash attention, to be run in `flash_attention`."""
    if reason := why_no_flash(family):
        pytest.skip(reason)
    return _with_flash(family)


# -- caches that hold something else than tensors ----------------------------------------------------------------------


class Lossless(QuantizedLayer):
    """A quantised entry that loses nothing: its tensors are out of sight, in a tuple."""

    def __init__(self) -> None:
        super().__init__(residual_length=3)

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:  # type: ignore[override]
        return (tensor.clone(),)

    def _dequantize(self, qtensor: Any) -> torch.Tensor:
        return qtensor[0]


def lossless() -> Cache:
    """A cache of such entries."""
    return Cache(layers=[Lossless() for _ in range(tiny.LAYERS)])
