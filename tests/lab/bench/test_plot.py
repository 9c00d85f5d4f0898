"""Pictures from results, measured or not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from cases import case, result

from foveate.lab.bench.plot import draw
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


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nothing to draw yet"):
        draw(result(case(64, [], [])), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(CommandError, match="cannot write the plot"):
        draw(result(case(64, [1.0], [2.0])), tmp_path / "taken.png")
