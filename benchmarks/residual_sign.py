"""Which end of V2Drop's score is redundant? Keep the tokens that a layer changed most, then those it changed least.

    python benchmarks/residual_sign.py [--json FILE]

Validation split, ten questions of each core task; the answer is in docs/reference-benchmark.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import foveate_reference as reference
from foveate import Site, Tokens, V2Drop
from foveate.lab.evaluation.asking import answer
from foveate.lab.evaluation.batches import grouped
from foveate.lab.evaluation.subject import load


@dataclass(frozen=True)
class Reversed(V2Drop):
    """V2Drop that keeps what it would drop."""

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return -super().score(tokens, site)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    samples = reference.samples("validation", tasks=reference.CORE, per_task=10)
    rows = []
    for name in reference.ARCHITECTURES:
        subject = load(f"reference-{name}")
        for layer, keep in ((1, 0.7), (5, 0.5)):
            for method in (V2Drop(layers=(layer,), ratios=(keep,)), Reversed(layers=(layer,), ratios=(keep,))):
                right = 0
                for group in grouped(samples):
                    words, _ = answer(subject, subject.preparation.batch(group), method)
                    right += sum(word == sample.answer for word, sample in zip(words, group))
                row = {"model": name, "layer": layer, "keep": keep, "kept": "least changed", "questions": len(samples)}
                if not isinstance(method, Reversed):
                    row["kept"] = "most changed"
                rows.append(row | {"accuracy": round(right / len(samples), 3), "method": method.to_dict()})
                print(rows[-1])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
