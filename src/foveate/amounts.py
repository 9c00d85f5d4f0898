"""Large and small amounts, of bytes, FLOPs and the like, as a person reads them."""

from __future__ import annotations

_PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def amount(count: float, unit: str) -> str:
    """``(3.4e4, "B")`` -> ``"34.0 kB"``: a number in the prefix that suits it."""
    prefix, size = _prefix(count)
    return f"{_number(count, size)} {prefix}{unit}"


def scaled(now: float, full: float, unit: str) -> str:
    """``(6.6e8, 8.9e8, "FLOPs")`` -> ``"662.0 of 887.5 MFLOPs"``: two numbers in the prefix that suits the larger.

    The smaller one has its own where it would be 0.0. Where the stock model spends nothing, there is nothing to be a share of,
    and one number is all.
    """
    if not full:
        return f"{amount(now, unit)}, the stock model none" if now else "none"
    prefix, size = _prefix(max(now, full))
    if min(now, full) and min(now, full) < size / 10:
        return f"{amount(now, unit)} of {amount(full, unit)}"
    return f"{_number(now, size)} of {_number(full, size)} {prefix}{unit}"


def _prefix(count: float) -> tuple[str, float]:
    return next(((prefix, size) for prefix, size in _PREFIXES if count >= size), ("", 1.0))


def _number(count: float, size: float) -> str:
    return f"{count / size:,.{1 if size > 1 else 0}f}"
