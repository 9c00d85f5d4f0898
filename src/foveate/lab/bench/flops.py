"""Torch's counter of FLOPs, with the kernels that it does not know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """Counts the matrix products, convolutions and attention of what runs inside it.

    By itself the counter knows neither the CPU's attention kernel, nor the products of a mixture of experts, nor triangular
    systems. Kernels from outside torch (FlashAttention's package) are not counted.
    """
    products = [(torch.ops.aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback")]
    known: dict[Any, Any] = {getattr(library, name): _grouped for library, name in products if hasattr(library, name)}
    known[torch.ops.aten.linalg_solve_triangular] = _triangular
    known[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = _attention
    return FlopCounterMode(display=False, custom_mapping=known)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *others: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _grouped(rows: Sequence[int], experts: Sequence[int], *others: Any, **options: Any) -> int:
    return 2 * rows[0] * experts[1] * experts[2]


def _triangular(system: Sequence[int], right: Sequence[int], **options: Any) -> int:
    return 2 * math.prod(right) * system[-1]  # as the product with the inverse, which older versions compute
