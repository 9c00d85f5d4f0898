"""What all tables are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Names of the reference models.
MODELS = {"qwen2_5_vl": "Qwen2.5-VL", "llava": "LLaVA"}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """Markdown: the first ``names`` columns left, all others right."""
    marks = ["---"] * names + ["---:"] * (len(columns) - names)
    lines = [_line(columns), "|" + "|".join(marks) + "|", *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
