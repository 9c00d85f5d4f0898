"""Tokens that leave are spread over several of those that stay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.segments import alike, offsets, padded_index, padded_pairs, rows_of, to_padded


def spread(
    x: Tensor,
    queries: Tensor,
    leave: Tensor,
    n_leave: Sequence[int],
    keys: Tensor,
    stay: Tensor,
    n_stay: Sequence[int],
    quantile: float,
) -> tuple[Tensor, Tensor]:
    """Spread each token that leaves over those of its segment that it attends to most, which become weighted means.

    It goes to those whose products with it are above the ``quantile`` of all, and to the best one in any case, in proportion to
    the softmax of these products. One that stays weighs 1 in its mean.

    Args:
        x: ``(N, C)``.
        queries, keys: ``(N, D)``, whose products count.
        leave, stay: packed indices, ascending.
        n_leave, n_stay: how many these are in each segment. Where none stays, those that leave are lost.
        quantile: from 0 to 1.

    Returns:
        ``(K, C)`` what stays becomes, in the dtype of ``x``; and ``(L,)`` int64 the index into ``stay`` of the best of each
        token that leaves, ``K`` where none stays.
    """
    value, device, start = x[stay].float(), x.device, offsets(n_stay)
    best = torch.full((len(leave),), len(stay), device=device)
    for members in alike(n_leave, n_stay):
        few, many = [n_leave[s] for s in members], [n_stay[s] for s in members]
        if not sum(few) or not sum(many):
            continue
        gone, left = rows_of(members, n_leave, device), rows_of(members, n_stay, device)
        q, k = to_padded(queries[leave[gone]].float(), few), to_padded(keys[stay[left]].float(), many)
        leaves, there = (to_padded(torch.ones(sum(n), dtype=torch.bool, device=device), n, False) for n in (few, many))
        leaves = leaves & there[:, :1]  # where none stays, there is nothing to be added to
        product = (q @ k.transpose(1, 2)).masked_fill(~there[:, None], -torch.inf)  # (S, L, K)
        above = [max(1, n - 1 - int(quantile * (n - 1))) for n in many]
        found = product.topk(min(max(above), product.shape[2]), dim=-1)
        last = torch.tensor(above).to(device, non_blocking=True)[:, None, None].expand(-1, product.shape[1], -1) - 1
        product = product.masked_fill(product < found.values.gather(2, last), -torch.inf)
        weight = product.softmax(-1).masked_fill(~leaves[:, :, None], 0.0)
        total = weight.transpose(1, 2) @ to_padded(x[leave[gone]].float(), few)
        here, mass = padded_index(many, device), weight.sum(1).flatten()
        value[left] = (value[left] + total.flatten(0, 1)[here]) / (1 + mass[here])[:, None]
        first = torch.tensor([start[s] for s in members]).to(device, non_blocking=True)
        target = torch.where(leaves, found.indices[..., 0] + first[:, None], len(stay))
        best[gone] = target.flatten()[padded_index(few, device)]
    return value.to(x.dtype), best


def spread_flops(n_leave: Sequence[int], n_stay: Sequence[int], width: int, channels: int) -> int:
    """Floating-point operations of the matrix products in `spread` (2 per multiply-add).

    Args:
        n_leave, n_stay: as there.
        width: of the queries, ``D``.
        channels: of what is spread, ``C``.
    """
    return 2 * padded_pairs(n_leave, n_stay) * (width + channels)
