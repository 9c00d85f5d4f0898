"""The table of a load: stock figures, and ratios within each round."""

from __future__ import annotations

from tables import load


def figures(requests: float, ttft: float, kv: float) -> dict[str, float]:
    times = {"ttft_p50": ttft, "ttft_p99": 2 * ttft, "per_token": ttft / 10}
    return {"requests_per_second": requests, "tokens_per_second": 16 * requests, **times, "kv": kv}


def test_ratios_are_of_one_round() -> None:
    """Of three rounds on a machine that grows slower, a method that is twice as fast is that in each of them."""
    stock = [figures(4 / slow, 0.5 * slow, 0.2) for slow in (1, 2, 4)]
    method = [figures(8 / slow, 0.4 * slow, 0) for slow in (1, 2, 4)]
    found = {"methods": {"stock": {"8": stock}, "LUVC()": {"8": method}, "stock, eager": {"8": stock[:1]}}}
    _, _, first, second, third = load.curve({**found, "same_with_graphs": {}}).splitlines()
    assert first == "| 8 | stock | 2.00 | 32 | 1.00 s | 2.00 s | 0.100 s | 20.0% |"
    ratio = "2.00x (2.00-2.00) | 2.00x (2.00-2.00) | 0.80x (0.80-0.80) | 0.80x (0.80-0.80) | 0.80x (0.80-0.80) | 0.00x"
    assert second.startswith(f"| 8 | `LUVC()` | {ratio}")
    assert third == "| 8 | stock, eager | 1.00x | 1.00x | 1.00x | 1.00x | 1.00x | 1.00x |"
    assert load.graphs({"same_with_graphs": {"LUVC()": 0.75}}).endswith("| `LUVC()` | 75% |")
