"""The table of `residual_sign.py`."""

from __future__ import annotations

from typing import Any

from tables.cells import MODELS, table


def kept(found: list[dict[str, Any]]) -> str:
    """Right answers when the most changed tokens stay, and when the least changed do."""
    shares = {(row["model"], row["layer"], row["keep"], row["kept"]): row["accuracy"] for row in found}
    rows = [
        (
            MODELS[model],
            str(layer),
            f"{keep:.0%}",
            *(f"{shares[model, layer, keep, f'{end} changed']:.1%}" for end in ENDS),
        )
        for model, layer, keep in dict.fromkeys(key[:3] for key in shares)
    ]
    return table(("", "layer", "kept", *(f"the {end} changed" for end in ENDS)), rows)


ENDS = ("most", "least")
