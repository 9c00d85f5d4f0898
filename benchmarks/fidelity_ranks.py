"""Does fidelity, which needs no labels, order methods as accuracy does? Spearman's rank correlation at each budget.

    python benchmarks/fidelity_ranks.py [qwen2_5_vl | llava ...]

reads what is committed: `foveate eval --fidelity` (docs/results/fidelity) and, of the store, `foveate eval` on other questions
(`reference-MODEL`; methods that are not in there: `systems-tokens-MODEL`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def rows(path: Path) -> dict[tuple[str, float], dict[str, Any]]:
    """Those at a budget, by label and budget."""
    data = json.loads(path.read_text())
    found = data.get("found", data)  # of the store, or of `foveate eval` itself
    return {(row["label"], row["budget"]): row for row in found["rows"] if row["budget"] is not None}


def spearman(one: list[float], other: list[float]) -> float:
    """Without ties."""
    return float(np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1])


def main() -> None:
    for model in sys.argv[1:] or ["qwen2_5_vl", "llava"]:
        accuracy = rows(HERE / "results" / f"systems-tokens-{model}.json")
        accuracy |= rows(HERE / "results" / f"reference-{model}.json")
        heard = rows(HERE.parent / "docs" / "results" / "fidelity" / model / "results.json")
        for budget in sorted({budget for _, budget in heard}, reverse=True):
            known = [key for key in heard if key[1] == budget and key in accuracy]
            known.sort(key=lambda key: heard[key]["kl"]["value"])
            kl = [heard[key]["kl"]["value"] for key in known]
            right = [accuracy[key]["accuracy"]["value"] for key in known]
            print(
                f"\n{model} at {budget}: Spearman {spearman(kl, [-each for each in right]):.2f} of {len(known)} methods\n"
            )
            print(f"{'':16}{'KL':>8}{'same answer':>14}{'accuracy':>10}")
            for key, nats, share in zip(known, kl, right):
                print(f"{key[0]:16}{nats:8.4f}{heard[key]['same']['value']:14.1%}{share:10.1%}")


if __name__ == "__main__":
    main()
