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
from foveate.lab.asker import Cost
from foveate.lab.evaluation import statistics
from foveate.lab.evaluation.lmms.memory import Memory, Note
from foveate.lab.evaluation.lmms.rows import rows
from foveate.lab.evaluation.lmms.run import scores_of
from foveate.lab.evaluation.lmms.scores import Finished, Scored, finished, read, save
from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.request import Tasks
from foveate.lab.terminal import CommandError

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
    with pytest.raises(CommandError, match="is of another run, whose limit was 3, and now is 4"):
        read(path, {"limit": 4})
    path.write_text("{")
    with pytest.raises(CommandError, match="is not a file of scores: delete it"):
        read(path, header)


def test_names_of_files_fit_every_file_system(tmp_path: Path) -> None:
    request = Tasks(tmp_path, tasks=("t",))
    one, other = (Entry("+".join([f"fastv(layer={layer}, keep=0.123456)"] * 12), FastV(), 0.5) for layer in (1, 2))
    first, second = (scores_of(request, entry, "t" * 40) for entry in (one, other))
    assert first.name != second.name
    assert max(len(first.name), len(second.name)) < 200
    assert scores_of(request, FASTV, "t").name == "t-fastv-at-0.25-tokens.json"


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


def test_a_task_in_which_a_method_has_answers_without_a_score() -> None:
    """It is left out for all, with a note; the report is made."""
    full, part = Finished({"t": Scored({"0": 1.0}, {}), "u": Scored({"0": 1.0}, {})}, None), Scored({}, {})
    found = {DENSE: [full], FASTV: [Finished({**full.tasks, "u": part}, COST)]}
    (dense, fastv), notes = rows((DENSE, FASTV), found)
    assert list(dense.tasks) == list(fastv.tasks) == ["t"]
    assert notes == ["u is not in the table: lmms-eval gives some answers of fastv at 0.25 no score."]
    with pytest.raises(CommandError, match="no task can be compared: t is not in the table"):
        rows((DENSE, FASTV), {DENSE: [Finished({"t": full.tasks["t"]}, None)], FASTV: [Finished({"t": part}, COST)]})


def test_scores_below_zero() -> None:
    """Retention of nothing, or of less, is no number."""
    for stock in ((-1.0, 1.0), (-1.0, -1.0), (0.0, 0.0)):
        (_, fastv, _), _ = compared(stock, (1.0, 1.0), (0.0, 0.0))
        assert fastv.retention is None
        assert fastv.tasks["t"].retention is None


def test_the_order_of_answers_does_not_change_the_cost() -> None:
    """An interrupted run has them in another one."""
    costs = [Cost(x, x, x, x, x, x) for x in (0.1, 1e16, 0.3, -1e16, 0.7)]
    results = returned([{"doc_id": 0, "acc": 1}], acc=True)
    assert finished(results, costs) == finished(results, costs[::-1])


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


def test_files_of_other_processes_stay_as_they_are(tmp_path: Path) -> None:
    """They may be in the middle of a line; one's own file is cut there."""
    header = {"limit": 3}
    Memory(tmp_path / "t-dense-1.jsonl", header).add([Note("t/4/0/0", "one\n\u2028two", 1, 0.0, None)])
    for end in (b"", b'{"id": "t/5'):
        other, empty = tmp_path / "t-dense-1.jsonl", tmp_path / "t-dense-2.jsonl"
        other.write_bytes(other.read_bytes() + end)
        empty.write_bytes(b"")
        before = other.read_bytes()
        assert Memory(tmp_path / "t-dense-0.jsonl", header)["t/4/0/0"] == Note(
            "t/4/0/0", "one\n\u2028two", 1, 0.0, None
        )
        assert (other.read_bytes(), empty.read_bytes()) == (before, b"")
    mine = Memory(other, header)
    mine.add([Note("t/5/0/0", "b", 1, 0.0, None)])
    assert other.read_bytes().count(b"\n") == 3
    assert Memory(other, header)["t/5/0/0"] == Note("t/5/0/0", "b", 1, 0.0, None)
    assert Memory(empty, header).get("t/4/0/0") is not None
    assert json.loads(empty.read_text()) == header


def test_memory_of_several_processes(tmp_path: Path) -> None:
    header = {"limit": 3}
    first = Memory(tmp_path / "t-dense-0.jsonl", header)
    assert first.names(asked(4, 4, 5)) == ["t/4/0/0", "t/4/0/1", "t/5/0/0"], (
        "a question that is repeated has several answers"
    )
    assert first.names(asked(4, 5, padding=(5,))) == ["t/4/0/0", "t/5/0/0", "t/5/0/0"]
    first.add([Note("t/4/0/0", "a", 1, 0.0, COST), Note("t/5/0/0", "b", 2, 0.0, COST)])
    Memory(tmp_path / "t-dense-at-0.5-0.jsonl", {"limit": 9}).add([Note("t/7/0/0", "c", 1, 0.0, None)])
    second = Memory(tmp_path / "t-dense-1.jsonl", header)
    second.add([Note("t/6/0/0", "greedy", 0, 0.25, None)])
    together = Memory(tmp_path / "t-dense-2.jsonl", header)
    assert together["t/5/0/0"] == Note("t/5/0/0", "b", 2, 0.0, COST)
    assert together["t/6/0/0"] == Note("t/6/0/0", "greedy", 0, 0.25, None)
    assert together.get("t/7/0/0") is None
    assert together.costs() == [COST, COST]
    lines = (tmp_path / "t-dense-0.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == header
    assert len(lines) == 3
    with pytest.raises(CommandError, match="is of another run"):
        Memory(tmp_path / "t-dense-0.jsonl", {"limit": 4})
