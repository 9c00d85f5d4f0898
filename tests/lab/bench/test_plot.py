"""Pictures from results, measured or not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from cases import case, result
from PIL import Image

from foveate.lab import drawing
from foveate.lab.bench import plot
from foveate.lab.bench.plot import draw
from foveate.lab.bench.summary import compare
from foveate.lab.terminal import CommandError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is missing")


def test_a_picture(tmp_path: Path) -> None:
    swept = result(case(64, [1.0, 1.1], [2.0, 1.9]), case(256, [1.0, 1.1], [0.7, 0.9]))
    draw(swept, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_several_models_and_batches(tmp_path: Path) -> None:
    swept = result(case(64, [1.0], [2.0]), case(256, [1.0], [0.7]))
    other = case(64, [1.0], [2.0])
    other.model, other.batch = "large", 4
    swept.cases.append(other)
    draw(swept, tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text()
    assert "<svg" in text


def test_it_can_be_read_on_a_page(tmp_path: Path) -> None:
    """A page shows it 700 pixels wide: letters of twelve of them, the first of the site's colours, and no zoom."""
    swept = result(case(64, [1.0, 1.1, 1.2], [1.01, 1.02, 1.05]))
    found = compare(swept.cases[0], "luvc")
    assert found is not None
    figure = plot._figure(swept, {("small", 1): {"luvc": [found]}})
    pixels_a_point = 700 / (72 * figure.get_figwidth())
    assert drawing.STYLE["font.size"] * pixels_a_point > 12
    for axes in figure.axes:
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= 1
        low, high = axes.get_xlim()
        assert high / low >= 8, "a single size is not all of the axis"
    draw(swept, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width == 1400


def test_no_two_methods_look_alike() -> None:
    found = drawing.styles([f"method{i}" for i in range(25)] + ["random", "stride(keep=0.5)", "downsample"])
    assert len({tuple(sorted(style.items())) for style in found.values()}) == 28
    assert found["stride(keep=0.5)"]["color"] == drawing.SOFT


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nothing to draw yet"):
        draw(result(case(64, [], [])), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(CommandError, match="cannot write the plot"):
        draw(result(case(64, [1.0], [2.0])), tmp_path / "taken.png")
