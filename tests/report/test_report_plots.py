"""Curves and plots from the JSON of other commands, and what is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.report import plots
from foveate.terminal import CommandError

PLOT: dict[str, Any] = {
    "title": "prefill",
    "x": {"label": "visual tokens", "log": True},
    "y": {"label": "seconds"},
    "series": [
        {"label": "dense", "points": [[1024, 0.5, 0.4, 0.6], [256, 0.1]]},
        {"label": "random", "points": [[256, 0.1]], "quiet": True},
    ],
}


def written(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_results_of_eval(results: Path) -> None:
    group = plots.of_results(results)
    assert group.title == "qwen2_5_vl"
    assert [plot.title for plot in group.plots] == list(plots.COSTS.values())
    rows = json.loads(results.read_text())["rows"]
    for plot, cost in zip(group.plots, plots.COSTS):
        lines = {line.label: line for line in plot.series}
        assert lines["dense"].level
        assert lines["dense"].points[0][1] == rows[0]["accuracy"]["value"]
        assert lines["random"].quiet
        assert not lines["luvc"].quiet
        mine = [row for row in rows if row["label"] == "luvc"]
        assert lines["luvc"].points == tuple(
            sorted((row["spent"][cost], *(row["accuracy"][name] for name in ("value", "low", "high"))) for row in mine)
        )


def test_plots_of_anything(tmp_path: Path) -> None:
    (plot,) = plots.of_bench(written(tmp_path / "b.json", {"plots": [PLOT]})).plots
    assert plot.x == plots.Axis("visual tokens", log=True)
    assert plot.series[0].points == ((256.0, 0.1), (1024.0, 0.5, 0.4, 0.6))
    assert [line.quiet for line in plot.series] == [False, True]


WRONG: dict[str, tuple[Any, str]] = {
    "no plots": ({}, "'plots' is missing"),
    "no plot": ({"plots": []}, "it has no plot"),
    "no series": ({"plots": [{**PLOT, "series": None}]}, "not iterable"),
    "a point of three": ({"plots": [{**PLOT, "series": [{"label": "x", "points": [[1, 2, 3]]}]}]}, "not a point"),
    "a number that is none": ({"plots": [{**PLOT, "series": [{"label": "x", "points": [[1, "a"]]}]}]}, "convert"),
    "not a number": ({"plots": [{**PLOT, "series": [{"label": "x", "points": [[1, float("nan")]]}]}]}, "not a point"),
    "the logarithm of 0": ({"plots": [{**PLOT, "series": [{"label": "x", "points": [[0, 1]]}]}]}, "not above 0"),
    "an empty series": ({"plots": [{**PLOT, "series": [{"label": "x", "points": []}]}]}, "no point"),
    "nothing to draw": ({"plots": [{**PLOT, "series": []}]}, "no series"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes(name: str, tmp_path: Path) -> None:
    data, why = WRONG[name]
    path = written(tmp_path / "b.json", data)
    with pytest.raises(CommandError, match=rf"b.json' is not a JSON of `foveate bench`.*{why}"):
        plots.of_bench(path)


@pytest.mark.parametrize("data", [{}, {"rows": []}, {"rows": [{}], "model": "x"}])
def test_results_that_are_none(data: Any, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"is not a results\.json of `foveate eval`: "):
        plots.of_results(written(tmp_path / "r.json", data))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "list").write_text("[]")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name, sentence in {
        "text": "as JSON",
        "bytes": "as JSON",
        "list": "holds a list",
        "missing": "there is no file",
        ".": "is a folder",
    }.items():
        with pytest.raises(CommandError, match=sentence):
            plots.of_results(tmp_path / name)
