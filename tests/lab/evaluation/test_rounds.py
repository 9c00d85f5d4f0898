"""Two rounds of an evaluation: a forecast before each, and the best of the first in the second."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.lab.asker import Asker
from foveate.lab.evaluation import reference as protocol
from foveate.lab.evaluation.best import with_best
from foveate.lab.evaluation.reference import evaluate, plan
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
        planned = plan(request, silent)
        entries = ("dense", "stride at 0.5", "divprune at 0.5", "vtw at 0.5")
        assert {line.entry: line.left for line in planned.lines} == dict.fromkeys(entries, 4)
        assert planned.hours > 0
        assert "16 questions to ask, in 4 lines" in str(planned)
        assert not any(path.read_text().count("\n") > 1 for path in (out / "answers").glob("*.jsonl"))
        found = evaluate(request, silent)
        assert plan(request, silent).hours == 0
    return found


def test_the_difference_to_the_stock_model(first: Evaluation) -> None:
    dense, *others = first.rows
    assert dense.difference is not None
    assert (dense.difference.value, dense.difference.low, dense.difference.high) == (0, 0, 0)
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
