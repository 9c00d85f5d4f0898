"""The picture of an evaluation: whole axes, and an interval at every point."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foveate.lab.evaluation import curve

pytestmark = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is missing")


def row(label: str, budget: float | None, accuracy: float, spent: float) -> Any:
    share = SimpleNamespace(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.01)
    return SimpleNamespace(label=label, budget=budget, accuracy=share, spent=SimpleNamespace(tokens=spent, flops=spent))


def test_a_single_budget_is_not_all_of_the_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig

    def kept(self: Any, *args: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    rows = [row("dense", None, 0.95, 1.0), row("luvc", 0.5, 0.94, 0.49), row("random", 0.5, 0.93, 0.51)]
    rows.append(row("graded", 0.5, 0.5, 0.5))
    rows[-1].accuracy.low = rows[-1].accuracy.high = None
    curve.draw(rows, tmp_path / "curve.png", "llava", 0.2)
    [figure] = figures
    for axes in figure.axes:
        assert axes.get_xlim() == (0, 1.05)
        assert axes.get_ylim() == (0, 1)
        bars = [collection.get_segments()[0] for collection in axes.collections if hasattr(collection, "get_segments")]
        ends = sorted((round(float(low[1]), 6), round(float(high[1]), 6)) for low, high in bars)
        assert ends == [(0.5, 0.5), (0.91, 0.94), (0.92, 0.95)]
