"""Curves and plots from the JSON of other commands, and what is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.lab.report import plots
from foveate.lab.report.bench import of_bench
from foveate.lab.terminal import CommandError

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
    rows = json.loads(results.read_text())["found"]["rows"]
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


def test_one_question_of_a_task_has_no_most_frequent_answer(results: Path, tmp_path: Path) -> None:
    """It is the right one, and a line at 100 % would say that guessing gets all."""
    data = json.loads(results.read_text())["found"]

    def levels() -> set[str]:
        group = plots.of_results(written(tmp_path / "results.json", data))
        return {line.label for plot in group.plots for line in plot.series if line.level}

    before = levels()
    next(iter(data["rows"][0]["tasks"].values()))["n"] = 1
    assert before - levels() == {"most frequent answer"}


def test_plots_of_anything(tmp_path: Path) -> None:
    ((plot,),) = (group.plots for group in of_bench(written(tmp_path / "b.json", {"plots": [PLOT]})))
    assert plot.x == plots.Axis("visual tokens", log=True)
    assert plot.series[0].points == ((256.0, 0.1), (1024.0, 0.5, 0.4, 0.6))
    assert [line.quiet for line in plot.series] == [False, True]


def measured(model: str, tokens: int, **times: list[float]) -> dict[str, Any]:
    """A case as ``foveate bench`` writes it."""
    lines = {
        label: {"method": None, "probe": None, "repeats": [{"first": each} for each in seconds], "error": None}
        for label, seconds in times.items()
    }
    return {"model": model, "tokens": tokens, "batch": 1, "images": 1, "size": [8, 8], "text": 5, "lines": lines}


def test_a_bench(tmp_path: Path) -> None:
    cases = [
        measured("small", 1024, dense=[4.0, 4.0, 8.0], luvc=[2.0, 1.0, 8.0], random=[4.0, 4.0]),
        measured("small", 256, dense=[1.0], luvc=[2.0], random=[]),
        measured("other", 256, dense=[1.0], luvc=[1.0]),
    ]
    data = {"schema": 1, "settings": {"device": "cpu", "threads": 1}, "command": "foveate bench", "cases": cases}
    small, other = of_bench(written(tmp_path / "bench.json", data))
    assert (small.title, other.title) == ("small, batch 1", "other, batch 1")
    assert "1 thread." in small.note
    (plot,) = small.plots
    lines = {line.label: line for line in plot.series}
    assert lines["luvc"].points == ((256.0, 0.5, 0.5, 0.5), (1024.0, 2.0, 1.5, 3.0))
    assert lines["random"].quiet
    assert lines["random"].points == ((1024.0, 1.0, 1.0, 1.0),)
    assert lines["stock model"].level


WRONG: dict[str, tuple[Any, str]] = {
    "no plots": ({}, "'plots' is missing"),
    "no plot": ({"plots": []}, "nothing to draw"),
    "no series": ({"plots": [{**PLOT, "series": None}]}, "not iterable"),
    "a point of three": ({"plots": [{**PLOT, "series": [{"label": "x", "points": [[1, 2, 3]]}]}]}, "not a point"),
    "a number that is none": ({"plots": [{**PLOT, "series": [{"label": "x", "points": [[1, "a"]]}]}]}, "convert"),
    "not a number": ({"plots": [{**PLOT, "series": [{"label": "x", "points": [[1, float("nan")]]}]}]}, "not a point"),
    "the logarithm of 0": ({"plots": [{**PLOT, "series": [{"label": "x", "points": [[0, 1]]}]}]}, "not above 0"),
    "an empty series": ({"plots": [{**PLOT, "series": [{"label": "x", "points": []}]}]}, "no point"),
    "half a bench": ({"schema": 1, "settings": {}, "cases": [{}]}, "'lines' is missing"),
    "a bench that took no time": (
        {
            "schema": 1,
            "settings": {"device": "cpu", "threads": 2},
            "cases": [measured("s", 4, dense=[1.0], luvc=[0.0])],
        },
        "division by zero",
    ),
    "nothing to draw": ({"plots": [{**PLOT, "series": []}]}, "no series"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes(name: str, tmp_path: Path) -> None:
    data, why = WRONG[name]
    path = written(tmp_path / "b.json", data)
    with pytest.raises(CommandError, match=rf"b.json' is not a JSON of `foveate bench`.*{why}"):
        of_bench(path)


def test_a_bench_that_has_only_begun(tmp_path: Path) -> None:
    """What is there is a result, which has nothing to draw yet; of several sizes, those that have are drawn."""
    begun = measured("small", 4, dense=[1.0], luvc=[])
    data = {"schema": 1, "settings": {"device": "cpu", "threads": 2}, "cases": [begun]}
    for cases in ([], [begun]):
        with pytest.raises(CommandError, match=r"b.json' has no finished round yet: the same `foveate bench` command"):
            of_bench(written(tmp_path / "b.json", {**data, "cases": cases}))
    some = {**data, "cases": [begun, measured("other", 4, dense=[1.0], luvc=[2.0])]}
    assert [group.title for group in of_bench(written(tmp_path / "b.json", some))] == ["other, batch 1"]


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
