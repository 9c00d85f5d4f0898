"""What each token was worth to what a transformer said, from its attention and the gradients of that."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def rollout(maps: Sequence[Tensor], gradients: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Relevance of every position for what is said at some rows, layer by layer (Chefer et al., 2103.15679).

    With ``E_l`` the head mean of what is positive in attention times gradient, it is ``rows (I + E_L) ... (I + E_1)``: products
    of a vector with a matrix, one after another, so that no product of two maps is made.

    Args:
        maps: ``(B, H, L, L)`` attention of each layer, the first layer first.
        gradients: of what was said, by each of them, in the same shapes.
        rows: ``(B, L)`` weights of the positions that said it.

    Returns:
        ``(B, L)``, 0 or more.
    """
    found = rows
    for attention, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        worth = (attention * gradient).float().clamp(min=0).mean(1)
        found = found + (found[:, None].to(worth) @ worth)[:, 0]
    return found
