"""Filters over packed tokens, by frequency. One FFT for all segments of one length; segments never see each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.segments import alike, gram, gram_pairs, offsets, padded_index, ranges, rows_of, to_padded


def gain(frequency: Tensor, cutoff: float, kind: str) -> Tensor:
    """Return what a low-pass filter lets through at ``frequency``, of which 1 is Nyquist's.

    Args:
        frequency: any shape, from 0 to 1.
        cutoff: from 0 (the narrowest filter of its kind) to 1 (the widest).
        kind: ``notch``, ``1 - exp(-(1 - f)^2 / 2 (1 - cutoff)^2)``: everything but what is near Nyquist, and with
            ``cutoff`` 1 everything; ``gaussian``, ``exp(-f^2 / 2 cutoff^2)``: only what is near 0, and with ``cutoff``
            0 the mean alone.
    """
    distance, width = (1 - frequency, 1 - cutoff) if kind == "notch" else (frequency, cutoff)
    # Of width 0 the bell is a point: one where the distance is 0, zero elsewhere. The notch has no point at all.
    bell = torch.exp(-0.5 * (distance / width) ** 2) if width > 0 else (distance == 0).to(distance)
    if kind == "notch":
        return 1 - bell if width > 0 else torch.ones_like(bell)
    return bell


def low_pass(x: Tensor, counts: Sequence[int], cutoff: float, kind: str, mirror: bool) -> Tensor:
    """Filter every channel along the tokens of each segment.

    Args:
        x: ``(N, C)``.
        counts: tokens per segment.
        cutoff, kind: see `gain`.
        mirror: continue a segment by its mirror image, so that its ends do not leak into each other (this is filtering
            its DCT-II); else it wraps around.

    Returns:
        ``(N, C)``, at least fp32.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # GPUs have no FFT of bfloat16
    start = offsets(counts)
    out = torch.empty_like(x)
    if len(set(counts)) == 1 and counts[0]:
        return _filter(x.view(len(counts), counts[0], -1), cutoff, kind, mirror).flatten(0, 1)
    for length in set(counts) - {0}:
        members = [s for s, count in enumerate(counts) if count == length]
        rows = ranges([start[s] for s in members], [length] * len(members), x.device)
        segments = x[rows].view(len(members), length, -1)
        out[rows] = _filter(segments, cutoff, kind, mirror).flatten(0, 1)
    return out


def low_pass_channels(x: Tensor, cutoff: float, kind: str, mirror: bool) -> Tensor:
    """Filter every token of ``x (N, C)`` along its channels; see `low_pass`."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return _filter(x[..., None], cutoff, kind, mirror)[..., 0] if len(x) else x


def _filter(x: Tensor, cutoff: float, kind: str, mirror: bool) -> Tensor:
    """Filter ``(S, n, C)`` along its axis 1."""
    n = x.shape[1]
    if mirror:
        return _filter_mirrored(x, cutoff, kind)
    frequency = torch.arange(n // 2 + 1, device=x.device, dtype=x.dtype) * 2 / n
    spectrum = torch.fft.rfft(x, dim=1) * gain(frequency, cutoff, kind)[:, None]
    filtered: Tensor = torch.fft.irfft(spectrum, n=n, dim=1)
    return filtered


def _filter_mirrored(x: Tensor, cutoff: float, kind: str) -> Tensor:
    """The same of ``x`` continued by its mirror image, whose spectrum is the DCT-II ``X`` of ``x``.

    Of the even and then, backwards, the odd places of ``x``, an FFT of half the length has ``V``, and with ``t = pi k / 2n``
    ``exp(-i t) V[k] = X[k] - i X[n - k]`` (Makhoul 1980). Gains ``g`` on ``X`` make of it
    ``(g[k] + g[n - k]) / 2 V[k] + (g[k] - g[n - k]) / 2 exp(2 i t) conj(V[k])``.
    """
    n = x.shape[1]
    every = torch.arange(n, device=x.device)
    folded = torch.cat([every[::2], every[1::2].flip(0)])
    place = torch.arange(n // 2 + 1, device=x.device, dtype=x.dtype)
    passes, of_rest = (gain(each / n, cutoff, kind) for each in (place, n - place))
    turn = torch.polar((passes - of_rest) / 2, torch.pi * place / n)
    spectrum = torch.fft.rfft(x.index_select(1, folded), dim=1)
    turned = (
        spectrum * turn.conj()[:, None]
    ).conj_physical_()  # in place: large tensors that are new cost more than products
    changed = spectrum.mul_(((passes + of_rest) / 2)[:, None]).add_(turned)
    filtered: Tensor = torch.fft.irfft(changed, n=n, dim=1)
    return filtered.index_select(1, folded.argsort())


def detail(x: Tensor, index: Tensor, counts: Sequence[int], shapes: Sequence[tuple[int, int]], cutoff: float) -> Tensor:
    """Return how large each token is, on average over its channels, once low frequencies are taken away in both directions.

    A Gaussian takes them away, ``exp(-f^2 / 2 w^2)`` with ``w`` of ``cutoff`` times the Nyquist frequency of the shorter side.

    Args:
        x: ``(N, C)``.
        index: ``(N,)`` int64, the raster place of each token in its rectangle.
        counts: tokens per rectangle, sums to ``N``.
        shapes: rectangles; of one that has lost tokens all details are 0.
        cutoff: from 0 (only the mean is taken away) on.

    Returns:
        ``(N,)``, fp32 at least.
    """
    wide, start = x.to(torch.promote_types(x.dtype, torch.float32)), offsets(counts)
    out = wide.new_zeros(len(x))
    whole = [s for s, (height, width) in enumerate(shapes) if 0 < counts[s] == height * width]
    for height, width in sorted({shapes[s] for s in whole}):
        members = [s for s in whole if shapes[s] == (height, width)]
        rows = rows_of(members, counts, x.device)
        first = torch.tensor([start[s] for s in members]).to(x.device, non_blocking=True)
        place = first.repeat_interleave(height * width, output_size=len(rows)) + index[rows]
        raster = torch.zeros_like(out, dtype=torch.long).index_copy_(0, place, rows)[rows]
        down, across = (torch.fft.fftfreq(n, 1 / n, device=x.device) for n in (height, width))
        across, bell = across[: width // 2 + 1], cutoff * min(height // 2, width // 2)
        far = down.square()[:, None] + across.square()
        passes = 1 - (torch.exp(-far / (2 * bell**2)) if bell > 0 else (far == 0).to(far))
        spectrum = torch.fft.rfftn(wide[raster].view(len(members), height, width, -1), dim=(1, 2))
        high = torch.fft.irfftn(spectrum * passes.to(wide)[..., None], s=(height, width), dim=(1, 2))
        out[raster] = high.abs().mean(-1).flatten()
    return out


#: A component with less than this share of the first one's variance is rounding.
_FLAT = 1e-6


def component_of(features: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Find the principal component of the tokens of a segment on which each of them has the largest loading.

    Tokens are the variables of this analysis, and channels what is observed of them: each token is centred over its channels.

    Args:
        features: ``(N, C)``.
        counts: tokens per segment, sums to ``N``.
        k: components per segment, the first ones, at least 1; those without variance are nobody's.

    Returns:
        ``(N,)`` int64, a component, counted over all segments.
    """
    found = torch.empty(len(features), dtype=torch.long, device=features.device)
    first = offsets(k)
    for members in alike(counts):
        few, own = [counts[s] for s in members], [k[s] for s in members]
        if not sum(few):
            continue
        wide = features.detach().float()[rows := rows_of(members, counts, features.device)]
        x = to_padded(wide - wide.mean(-1, keepdim=True), few)
        if x.shape[1] <= x.shape[2]:
            variance, loading = torch.linalg.eigh(gram(x))
        else:
            variance, loading = torch.linalg.eigh(x.transpose(1, 2) @ x)
            loading = x @ loading / variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()[:, None]
        variance, loading = variance.flip(1)[:, : max(own)], loading.abs().flip(2)[:, :, : max(own)]
        facts = torch.tensor([own, [first[s] for s in members]], dtype=torch.long)
        wanted, start = facts.to(x.device, non_blocking=True)[:, :, None]
        number = torch.arange(variance.shape[1], device=x.device)
        there = (number < wanted) & ((variance > _FLAT * variance[:, :1]) | (number == 0))
        best = loading.masked_fill(~there[:, None], -1.0).argmax(-1) + start
        found[rows] = best.flatten()[padded_index(few, x.device)]
    return found


def component_flops(counts: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `component_of` (2 per multiply-add)."""
    products = 0
    for members in alike(counts):
        few = [counts[s] for s in members]
        n = max(few, default=0)
        products += (gram_pairs(few) if n <= width else len(members) * 2 * n * width) * width
    return 2 * products
