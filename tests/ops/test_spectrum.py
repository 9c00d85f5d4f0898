"""Low-pass filters against sums written from the definition of the Fourier transform."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_cases import cloud, lengths, quick, rows, seeds
from torch import Tensor

from foveate.ops import spectrum

kinds = st.sampled_from(["notch", "gaussian"])
cutoffs = st.sampled_from([0.0, 0.1, 0.4, 0.85, 1.0])


def gain(f: float, cutoff: float, kind: str) -> float:
    if kind == "notch":
        return 1 - math.exp(-((1 - f) ** 2) / (2 * (1 - cutoff) ** 2)) if cutoff < 1 else 1.0
    return math.exp(-(f**2) / (2 * cutoff**2)) if cutoff > 0 else float(f == 0)


def filtered(signal: list[float], cutoff: float, kind: str, mirror: bool) -> list[float]:
    """The discrete Fourier transform, each coefficient times its gain, and back."""
    n = len(signal)
    signal = signal + signal[::-1] if mirror else signal
    period = len(signal)
    turn = [cmath.exp(2j * math.pi * m / period) for m in range(period)]
    spectrum_ = [sum(x / turn[k * i % period] for i, x in enumerate(signal)) for k in range(period)]
    passed = [c * gain(min(k, period - k) * 2 / period, cutoff, kind) for k, c in enumerate(spectrum_)]
    return [sum(c * turn[k * i % period] for k, c in enumerate(passed)).real / period for i in range(n)]


@quick
@given(lengths, seeds, kinds, cutoffs, st.booleans())
def test_low_pass(counts: list[int], seed: int, kind: str, cutoff: float, mirror: bool) -> None:
    x = cloud(sum(counts), seed, 3)
    wanted = torch.empty_like(x)
    for span in rows(counts):
        for channel in range(3):
            if len(span):
                signal = x[span.start : span.stop, channel].tolist()
                wanted[span.start : span.stop, channel] = torch.tensor(filtered(signal, cutoff, kind, mirror))
    torch.testing.assert_close(spectrum.low_pass(x, counts, cutoff, kind, mirror), wanted, rtol=1e-4, atol=1e-5)


@quick
@given(st.integers(0, 5), seeds, kinds, cutoffs, st.booleans())
def test_low_pass_channels(n: int, seed: int, kind: str, cutoff: float, mirror: bool) -> None:
    x = cloud(n, seed, 6)
    wanted = torch.tensor([filtered(token, cutoff, kind, mirror) for token in x.tolist()]).view(n, 6)
    torch.testing.assert_close(spectrum.low_pass_channels(x, cutoff, kind, mirror), wanted, rtol=1e-4, atol=1e-5)


def test_a_span_does_not_see_the_others() -> None:
    x = cloud(20, 0, 4)
    alone = spectrum.low_pass(x[5:12], [7], 0.3, "gaussian", True)
    torch.testing.assert_close(spectrum.low_pass(x, [5, 7, 0, 1, 7], 0.3, "gaussian", True)[5:12], alone)


@pytest.mark.parametrize("kind", ["notch", "gaussian"])
def test_a_circular_shift_goes_through(kind: str) -> None:
    x = cloud(9, 1, 4)
    whole = spectrum.low_pass(x, [9], 0.5, kind, False)
    torch.testing.assert_close(spectrum.low_pass(x.roll(3, 0), [9], 0.5, kind, False), whole.roll(3, 0))


def test_channels_do_not_mix() -> None:
    x, order = cloud(9, 2, 5), torch.tensor([3, 0, 4, 1, 2])
    whole = spectrum.low_pass(x, [4, 5], 0.5, "gaussian", True)
    torch.testing.assert_close(spectrum.low_pass(x[:, order], [4, 5], 0.5, "gaussian", True), whole[:, order])


def test_the_widest_notch_lets_everything_pass() -> None:
    x = cloud(9, 3, 4)
    torch.testing.assert_close(spectrum.low_pass(x, [4, 5], 1.0, "notch", True), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision(dtype: torch.dtype) -> None:
    low = spectrum.low_pass(cloud(6, 4, 4).to(dtype), [6], 0.5, "gaussian", True)
    assert low.dtype == torch.promote_types(dtype, torch.float32)
    constant: Tensor = torch.full((6, 4), 3.0, dtype=dtype)
    torch.testing.assert_close(spectrum.low_pass(constant, [6], 0.2, "gaussian", True), constant.to(low.dtype))
