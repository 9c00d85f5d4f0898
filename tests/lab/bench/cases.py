"""Results written by hand, for what is made of them."""

from __future__ import annotations

from typing import Any

from foveate.lab.bench.result import Case, Line, Result

SETTINGS: dict[str, Any] = {
    "methods": {"dense": None, "luvc": {"method": "luvc"}},
    "new_tokens": 4,
    "seed": 0,
    "dtype": "auto",
    "attn": None,
    "cpu": "one processor",
    "threads": 2,
    "device": "cpu",
    "versions": {"foveate": "9", "torch": "9", "transformers": "9"},
    "commit": "abc",
}
FULL = {"tower": 100, "projector": 10, "prefill": 800, "decode": 90, "head": 90, "sites": 0}
OURS = {"tower": 100, "projector": 10, "prefill": 400, "decode": 90, "head": 80, "sites": 0}


def case(tokens: int, dense: list[float], ours: list[float]) -> Case:
    """A case with these seconds to the first token, round by round."""
    stock = {"new_tokens": 4, "counted": 1000, "kv": 2_000_000, "peak": 4_000_000}
    method: dict[str, Any] = {"new_tokens": 4, "counted": 600, "kv": 1_000_000, "peak": 3_000_000, "tokens": tokens / 2}
    method |= {"flops": OURS, "full_flops": FULL}
    lines = {
        "dense": Line(None, stock, [times(first) for first in dense]),
        "luvc": Line({"method": "luvc"}, method, [times(first) for first in ours]),
    }
    return Case("small", tokens, 1, 1, [1, tokens], 34, lines, "float32", "sdpa")


def times(first: float) -> dict[str, float]:
    """Of a call whose first token takes so long."""
    return {"tower": first / 4, "prefill": first / 2, "first": first, "decode": first / 10, "total": 1.3 * first}


def result(*cases: Case) -> Result:
    """A result of these."""
    return Result(SETTINGS, "foveate bench", list(cases))
