"""What the first page of the site says in numbers."""

from __future__ import annotations

from typing import Any

from tables.cells import MODELS
from tables.speed import where

KEEP = 0.5


def numbers(speed: dict[str, Any], accuracy: dict[str, Any]) -> str:
    """The gain of LUVC in prefill and first token, and what it keeps of the accuracy, each with where it was measured."""
    ratios = speed["runs"][0]["cases"]["LUVC()"]["ratios"]
    [row] = [row for row in accuracy["rows"] if (row["label"], row["budget"]) == ("luvc", KEEP)]
    kept = row["retention"]
    panels = (
        (
            f"{ratios['prefill']:.1f}×",
            f"the speed of reading the prompt with `LUVC()`, and the first token {ratios['first']:.1f} times as soon: "
            f"{where(speed)}",
        ),
        (
            f"{kept['value']:.0%}",
            f"of the accuracy with {row['spent']['tokens']:.0%} of the visual tokens, LUVC again (95 % interval "
            f"{kept['low']:.1%} to {kept['high']:.1%}): the reference {MODELS[accuracy['model']]}, {accuracy['questions']:,} "
            "questions",
        ),
    )
    cells = "\n\n".join(f"<div markdown>\n\n**{number}**\n\n{says}\n\n</div>" for number, says in panels)
    return f'<div class="fv-numbers" markdown>\n\n{cells}\n\n</div>'
