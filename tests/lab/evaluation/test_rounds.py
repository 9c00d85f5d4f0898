"""Two rounds of an evaluation: a forecast before each, and the best of the first in the second."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.lab.asker import Asker
from foveate.lab.evaluation import costs as measured
from foveate.lab.evaluation import reference as protocol
from foveate.lab.evaluation.best import with_best
from foveate.lab.evaluation.forecast import Forecast, Line
from foveate.lab.evaluation.planning import plan
from foveate.lab.evaluation.reference import evaluate
from foveate.lab.evaluation.request import Reference
from foveate.lab.evaluation.table import Evaluation
from foveate.lab.terminal import CommandError


def silent(what: str, done: float) -> None:
    pass


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, qwen: Asker) -> Evaluation:
    """A plan, and the run that takes it over."""
    out = tmp_path_factory.mktemp("first")
    request = Reference(out, methods=("stride", "divprune", "vtw"), budgets=(0.5,), tasks=("color", "pair"), per_task=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "load_subject", lambda name, adapter: qwen)
        with pytest.MonkeyPatch.context() as unmeasured:
            unmeasured.setattr(measured, "hear", None)
            planned = plan(request, silent)
        entries = ("dense", "stride at 0.5", "divprune at 0.5", "vtw at 0.5")
        assert {line.entry: line.left for line in planned.lines} == dict.fromkeys(entries, 4)
        assert planned.hours > 0
        assert "16 questions to ask, in 4 lines" in str(planned)
        assert planned.unmeasured == 3
        assert "to find the budgets of 3 methods: what these spend has not been measured here" in str(planned)
        assert not list(out.iterdir())
        found = evaluate(request, silent)
        assert plan(request, silent) == Forecast(tuple(Line(name, "nothing", 0, 0.0) for name in entries))
        more = plan(replace(request, budgets=(0.9,), by="flops", methods=("stride", "vtw")), silent)
        assert [(line.entry, line.left) for line in more.lines] == [
            ("dense", 0),
            ("stride at 0.9", 4),
            ("vtw at 0.9", 4),
        ]
        assert plan(replace(request, overwrite=True), silent).lines[0].left == 4
        assert len(list((out / "answers").iterdir())) == 4
    return found


def test_the_difference_to_the_stock_model(first: Evaluation) -> None:
    dense, *others = first.rows
    assert dense.difference is not None
    assert dense.difference.value == 0
    for row in others:
        assert row.difference is not None
        assert row.difference.value == pytest.approx(row.accuracy.value - dense.accuracy.value)
        assert row.difference.low <= row.difference.value <= row.difference.high
    assert "against stock" in first.report().tables[0].columns
    older = replace(first, rows=tuple(replace(row, difference=None) for row in first.rows))  # type: ignore[type-var]
    assert "against stock" not in older.report().tables[0].columns


def test_the_best_of_an_earlier_run(first: Evaluation, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    for data in (first.to_dict(), {"found": first.to_dict()}):
        results.write_text(json.dumps(data))
        second = with_best(Reference(tmp_path / "second", best_of=results, best=1))
        (best,) = (json.loads(text)["method"] for text in second.described)
        scores = {row.label: row.accuracy.value for row in first.rows if row.label in ("divprune", "vtw")}
        assert scores[best] == max(scores.values())
        assert {"stride", "random", "downsample", "blind"} <= set(second.methods)
    results.write_text('{"rows": [{}]}')
    with pytest.raises(CommandError, match=r"is not the results.json of `foveate eval reference`"):
        with_best(Reference(best_of=results))
    with pytest.raises(CommandError, match="there is no such file"):
        Reference(best_of=tmp_path / "nowhere.json").check()
