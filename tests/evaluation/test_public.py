"""Public benchmarks without lmms-eval: from what it returns to the lines of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foveate import Downsample, FastV
from foveate.evaluation import statistics
from foveate.evaluation.asking import Cost
from foveate.evaluation.lmms.memory import Memory, Note
from foveate.evaluation.lmms.rows import rows
from foveate.evaluation.lmms.scores import Finished, Scored, finished, read, save
from foveate.evaluation.plan import Entry
from foveate.terminal import CommandError

COST = Cost(25.0, 60.0, 30.0, 100.0, 100.0, 100.0)
DENSE, FASTV, SMALL = Entry("dense"), Entry("fastv", FastV(), 0.25), Entry("downsample", Downsample(keep=0.25), 0.25)


def returned(samples: Sequence[dict[str, Any]], **metrics: bool) -> dict[str, Any]:
    """What `simple_evaluate` returns, as far as it is read."""
    listed = [{"metric": name} for name in metrics]
    results = {
        "alias": "t",
        "acc,none": 0.5,
        "acc_stderr,none": "N/A",
        "submission,none": None,
        "acc_stderr_clt,none": 0.1,
    }
    return {
        "samples": {"t": samples},
        "configs": {"t": {"metric_list": listed}},
        "higher_is_better": {"t": metrics},
        "results": {"t": results},
    }


def scored(samples: Sequence[dict[str, Any]], **metrics: bool) -> Scored:
    return finished(returned(samples, **metrics), []).tasks["t"]


def test_scores_of_all_kinds() -> None:
    plain = [{"doc_id": 0, "acc": 1}, {"doc_id": 1, "acc": np.float32(0.25)}, {"doc_id": 2, "acc": True}]
    assert scored(plain, acc=True) == Scored({"0": 1.0, "1": 0.25, "2": 1.0}, {"acc,none": 0.5})
    two = [{"doc_id": 0, "see": {"score": 1.0, "question": 7}}, {"doc_id": 1, "think": {"score": 0.0}}]
    assert scored(two, see=True, think=True).scores == {"0": 1.0, "1": 0.0}, "a question has either metric"
    filters = [{"doc_id": 0, "acc": 1}, {"doc_id": 1, "acc": 0}, {"doc_id": 0, "acc": 0}, {"doc_id": 1, "acc": 0}]
    assert scored(filters, acc=True).scores == {"0": 1.0, "1": 0.0}, "the first filter counts"
    later = [{"doc_id": 0, "submission": {"id": 1}, "acc": 0.5}]
    assert scored(later, submission=True, acc=True).scores == {"0": 0.5}


@pytest.mark.parametrize(
    "sample", [{"wer": 0.3}, {"acc": "yes"}, {"acc": {"id": 1}}, {"acc": float("nan")}, {"acc": None}, {"acc": [1, 0]}]
)
def test_what_is_no_score(sample: dict[str, Any]) -> None:
    """Errors (less is better), texts, mappings without a score; and one question without a score spoils the task."""
    assert scored([{"doc_id": 0, **sample}, {"doc_id": 1, "acc": 1}], wer=False, acc=True).scores == {}


def test_scores_on_disk(tmp_path: Path) -> None:
    path, header = tmp_path / "scores" / "a.json", {"limit": 3}
    assert read(path, header) is None
    one = Finished({"t": Scored({"0": 0.5}, {"acc,none": 0.5})}, COST)
    save(path, header, one)
    assert read(path, header) == one
    assert [other.name for other in path.parent.iterdir()] == ["a.json"]
    with pytest.raises(CommandError, match="belongs to another run: its limit is 3, now it is 4"):
        read(path, {"limit": 4})
    path.write_text("{")
    with pytest.raises(CommandError, match="is not a file of scores: delete it"):
        read(path, header)


def compared(*scores: Sequence[float]) -> Any:
    """Lines of dense, fastv and downsample on one task."""
    entries = (DENSE, FASTV, SMALL)
    found = {
        entry: [Finished({"t": Scored({str(i): s for i, s in enumerate(each)}, {})}, None if entry is DENSE else COST)]
        for entry, each in zip(entries, scores)
    }
    return rows(entries, found)


def test_group_a_and_retention() -> None:
    (dense, fastv, small), notes = compared((1, 1, 1, 1, 0, 1), (1, 0, 1, 0, 1, 1), (1, 1, 0, 0, 0, 0))
    assert notes == []
    assert fastv.accuracy.value == pytest.approx(4 / 6)
    assert fastv.retention.value == pytest.approx(4 / 5)
    assert (fastv.paired.gained, fastv.paired.lost) == (1, 2)
    assert (fastv.group_a.value, fastv.group_a.n) == (pytest.approx(2 / 3), 3)  # questions 2, 3, 5
    assert (fastv.group_b.value, fastv.group_b.n) == (0.5, 2)  # questions 0, 1
    assert (small.group_a.value, small.group_b.value) == (0, 1)
    assert dense.group_a is None
    assert fastv.tasks["t"].group_a == fastv.group_a
    assert (fastv.spent.tokens, fastv.spent.flops, fastv.spent.kv) == (0.25, 0.6, 0.3)
    assert dense.spent.tokens == 1


def test_graded_answers() -> None:
    (_, fastv, _), notes = compared((0.9, 0.6, 0.3, 1.0), (0.3, 0.6, 0.6, 1.0), (0.3, 0.3, 0.0, 1.0))
    assert notes == []
    assert fastv.accuracy.value == pytest.approx(2.5 / 4)
    assert fastv.retention.value == pytest.approx(2.5 / 2.8)
    assert (fastv.paired.gained, fastv.paired.lost) == (1, 1)
    assert (fastv.group_a.value, fastv.group_a.n) == (0.5, 2), "right from 0.5 on"


def test_scores_of_another_scale_and_none_at_all() -> None:
    (dense, fastv, _), notes = compared((90.0, 40.0), (80.0, 50.0), (10.0, 0.0))
    assert "t: its scores are not between 0 and 1" in notes[0]
    assert fastv.group_a is None
    assert fastv.tasks["t"].retention.value == pytest.approx(1.0)
    nothing = Finished({"u": Scored({}, {"submission,none": 3.0})}, None)
    one = Finished({"t": Scored({"0": 1.0}, {})}, None)
    (dense,), notes = rows((DENSE,), {DENSE: [one, nothing]})
    assert list(dense.tasks) == ["t"]
    assert notes == ["u is not in the table: lmms-eval gives its answers no score one by one."]


def test_intervals_of_grades_are_those_of_right_and_wrong() -> None:
    """The same questions as numbers, with one more pattern that never comes up, have nearly the same intervals."""
    generator = np.random.default_rng(1)
    tasks = ["a"] * 60 + ["b"] * 40
    right, dense = generator.random(100) < 0.6, generator.random(100) < 0.8
    for one, other in (
        (statistics.macro(tasks, right), statistics.macro(tasks, right.astype(float))),
        (
            statistics.retention(tasks, right, dense),
            statistics.retention(tasks, right.astype(float), dense.astype(float)),
        ),
    ):
        assert one is not None
        assert other is not None
        assert one.value == other.value
        assert (one.low, one.high) == (pytest.approx(other.low, abs=0.015), pytest.approx(other.high, abs=0.015))
    assert statistics.mcnemar(right, dense) == statistics.mcnemar(right.astype(float), dense.astype(float))


def asked(*numbers: int, padding: Sequence[int] = ()) -> list[Any]:
    made = [SimpleNamespace(task_name="t", doc_id=n, idx=0, metadata={}) for n in numbers]
    return made + [
        SimpleNamespace(task_name="t", doc_id=n, idx=0, metadata={"__padding_only__": True}) for n in padding
    ]


def test_memory_of_several_processes(tmp_path: Path) -> None:
    header = {"limit": 3}
    first = Memory(tmp_path / "t-dense-0.jsonl", header)
    assert first.names(asked(4, 4, 5)) == ["t/4/0/0", "t/4/0/1", "t/5/0/0"], (
        "a question that is repeated has several answers"
    )
    assert first.names(asked(4, 5, padding=(5,))) == ["t/4/0/0", "t/5/0/0", "t/5/0/0"]
    first.add({"t/4/0/0": Note("a", 1, COST), "t/5/0/0": Note("b", 2, COST)})
    Memory(tmp_path / "t-dense-at-0.5-0.jsonl", {"limit": 9}).add({"t/7/0/0": Note("c", 1, None)})
    second = Memory(tmp_path / "t-dense-1.jsonl", header)
    second.add({"t/6/0/0": Note("greedy", 0, None, 0.25)})
    together = Memory(tmp_path / "t-dense-2.jsonl", header)
    assert together["t/5/0/0"] == Note("b", 2, COST)
    assert together["t/6/0/0"] == Note("greedy", 0, None, 0.25)
    assert together.get("t/7/0/0") is None
    assert together.costs() == [COST, COST]
    lines = (tmp_path / "t-dense-0.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == header
    assert len(lines) == 3
    with pytest.raises(CommandError, match="belongs to another run"):
        Memory(tmp_path / "t-dense-0.jsonl", {"limit": 4})
