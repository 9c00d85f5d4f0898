"""How tests call a model and compare what it says; used by `contract` and by tests of single cases."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import tiny
import torch
import transformers
import transformers.generation.utils
from packaging.version import Version
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from foveate.runtime.cache import CompactMixin

#: generate() encodes images itself and hands over the features
HANDS_OVER_FEATURES = hasattr(transformers.GenerationMixin, "_prepare_multimodal_encoder_kwargs_for_generation")
CHUNKS = hasattr(transformers.generation.utils, "_slice_mm_encoder_output")
#: Hooks of a layer are around its checkpoint; older versions run them again inside it.
HOOKS_AROUND_CHECKPOINTS = Version(transformers.__version__) >= Version("5.23")
modern = pytest.mark.skipif(not HANDS_OVER_FEATURES, reason="this transformers has no pre-encoded images in generate()")
chunks = pytest.mark.skipif(not CHUNKS, reason="this transformers cannot cut a prompt with images into chunks")

#: a batch of every family: an image, several images with text between and after them, and text alone
ROWS: dict[str, list[list[tiny.Item]]] = {family: group.ROWS[family] for family, group in tiny.GROUP.items()}

LOGITS: dict[str, Any] = dict(output_logits=True, return_dict_in_generate=True)


def video_rows(family: str) -> list[list[tiny.Item]]:
    """A batch with videos, and an image beside them where stock code takes both."""
    rows: list[list[tiny.Item]] = tiny.GROUP[family].VIDEO_ROWS[family]
    return rows


def close(a: Tensor, b: Tensor, tolerance: float = 2e-4) -> None:
    """Equal up to the rounding of another batch shape. The tiny models' logits are of order 1 to 10."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def generate(model: Any, batch: Any, **options: Any) -> Any:
    """Four tokens that are words, chosen greedily."""
    return model.generate(**batch, max_new_tokens=4, do_sample=False, bad_words_ids=[[i] for i in range(9)], **options)


def text_of(family: str, batch: dict[str, Tensor]) -> Tensor:
    """``(B, L)`` bool: what is neither an image nor padding."""
    return ~tiny.visual_mask(family, batch) & batch["attention_mask"].bool()


def held(entry: Any, row: int = 0) -> int:
    """Entries of a row in a layer of the cache that are no padding (but for that of chunks without images)."""
    if not isinstance(entry, CompactMixin):
        return int(entry.keys.shape[-2])
    view = entry.kv.view(entry.keys.shape[0], entry.keys.device)
    assert view.index.shape[1] == entry.keys.shape[-2]
    return view.index.shape[1] if view.valid is None else int(view.valid[row].sum())


def longest(batch: dict[str, Tensor]) -> int:
    """The row of a batch that has no padding."""
    return int(batch["attention_mask"].sum(1).argmax())


def counted(impl: str, call: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and convolutions of a call. The counter knows the attention kernels of accelerators,
    and on CPU the one that is written in matrix products. Rotary embeddings are made by tiny products, too: not counted."""
    kernel = sdpa_kernel(SDPBackend.MATH) if impl == "sdpa" else nullcontext()
    with torch.no_grad(), tiny.flop_counter() as counter, kernel:
        call()
    rotary = [ops for name, ops in counter.get_flop_counts().items() if re.search(r"rotary\w*$", name, re.IGNORECASE)]
    return int(counter.get_total_flops()) - sum(sum(ops.values()) for ops in rotary)
