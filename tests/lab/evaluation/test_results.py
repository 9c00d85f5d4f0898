"""From answers to rows, on a handful of made-up answers; and what the report makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate import Downsample, Stride
from foveate.lab.asker import Cost
from foveate.lab.evaluation.bounds import AntiOracle
from foveate.lab.evaluation.plan import Entry, Missed
from foveate.lab.evaluation.report import markdown
from foveate.lab.evaluation.request import Reference
from foveate.lab.evaluation.results import Key, Question, Row, rows
from foveate.lab.evaluation.store import Record
from foveate.lab.evaluation.table import Evaluation, ordered
from foveate.lab.terminal import aligned

DENSE = Entry("dense")
STRIDE = Entry("stride", Stride(keep=0.5), 0.5)
SMALL = Entry("downsample", Downsample(keep=0.5), 0.5)
ANTI = Entry("antioracle", AntiOracle())

QUESTIONS = {
    (seed, f"{task}/{number}"): Question(task, "yes" if number % 2 else "no", 2, task == "exist")
    for seed in (0, 1)
    for task in ("exist", "absent")
    for number in range(4)
}
#: right answers by number, the same in both tasks and seeds
RIGHT = {DENSE: "1110", STRIDE: "0111", SMALL: "1010", ANTI: "0001"}


def answers(entry: Entry) -> dict[Key, Record]:
    found = {}
    for seed, name in QUESTIONS:
        task, number = name.split("/")
        big = task == "absent"  # such images cost four times as much, and keep half as much
        cost = Cost(100.0 if big else 50.0, 8.0, 2.0, 400.0 if big else 100.0, 16.0, 8.0)
        right = RIGHT[entry][int(number)] == "1"
        found[seed, name] = Record(name, task, "?", right, None if entry is DENSE else cost)
    return found


@pytest.fixture
def table() -> dict[str, Row]:
    plan = [DENSE, STRIDE, SMALL, ANTI]
    return {row.label: row for row in rows(plan, QUESTIONS, {entry: answers(entry) for entry in plan})}


def test_rows(table: dict[str, Row]) -> None:
    stride = table["stride"]
    assert stride.accuracy.value == pytest.approx(3 / 4)
    assert stride.accuracy.n == 16
    assert stride.retention is not None
    assert stride.retention.value == pytest.approx(1.0)
    assert (stride.paired.gained, stride.paired.lost, stride.paired.p) == (4, 4, 1.0)
    assert {task: share.value for task, share in stride.tasks.items()} == {"exist": 0.75, "absent": 0.75}
    assert stride.seeds == {0: 0.75, 1: 0.75}
    assert stride.chance == (0.5, 0.5)


def test_groups(table: dict[str, Row]) -> None:
    """Downsample gets question 1 wrong that the stock model gets right; it gets 0 and 2 right."""
    group_a, group_b = table["stride"].group_a, table["stride"].group_b
    assert group_a is not None
    assert group_b is not None
    assert (group_a.value, group_a.n) == (1.0, 4)
    assert (group_b.value, group_b.n) == (0.5, 8)
    own = table["downsample"].group_a
    assert own is not None
    assert own.value == 0.0
    assert table["dense"].group_a is None


def test_costs_are_totals(table: dict[str, Row]) -> None:
    assert table["stride"].spent.tokens == pytest.approx(150 / 500)
    assert table["stride"].spent.flops == pytest.approx(1 / 2)
    assert table["stride"].spent.kv == pytest.approx(1 / 4)
    assert table["dense"].spent.tokens == 1.0


def test_the_anti_oracle_answers_questions_with_evidence(table: dict[str, Row]) -> None:
    anti = table["antioracle"]
    assert anti.questions == "with evidence"
    assert list(anti.tasks) == ["exist"]
    assert anti.accuracy.n == 8
    assert anti.accuracy.value == 0.25
    assert anti.retention is not None
    assert anti.retention.value == pytest.approx(1 / 3)


def test_without_evidence_there_is_no_anti_oracle() -> None:
    texture = {key: Question("texture", q.truth, 2, False) for key, q in QUESTIONS.items()}
    plan = [DENSE, ANTI]
    assert [row.label for row in rows(plan, texture, {entry: answers(entry) for entry in plan})] == ["dense"]


def test_the_report(table: dict[str, Row]) -> None:
    request = Reference(
        Path("out"), methods=("stride", "downsample"), budgets=(0.5,), tasks=("exist", "absent"), seeds=(0, 1)
    )
    found = Evaluation(request, "toy", {}, tuple(table.values()), (Missed("fastv", 0.1, 0.2),), ("left out: x",))
    assert [row.label for row in ordered(found.rows)] == ["dense", "antioracle", "stride", "downsample"]
    text = markdown(found.report())
    command = "foveate eval reference --method stride --method downsample --budget 0.5 --task exist --task absent"
    for part in (
        f"    {command} --seed 0 --seed 1\n",
        "| stride | 0.5 | 75.0% | ",
        " | 100.0% of 4 | 30.0% | 50.0% | 25.0% | +0.0 | ",
        "| stride | 0.5 | 75 | 75 |",
        "* fastv cannot spend 0.1: the nearest is 0.2.",
        "* antioracle: the 8 questions with evidence only",
        "* left out: x",
    ):
        assert part in text
    data = found.to_dict()
    assert data["questions"] == 16
    assert data["out_of_reach"] == [{"label": "fastv", "budget": 0.1, "closest": 0.2}]
    assert data["rows"][1]["method"] == Stride(keep=0.5).to_dict()


def test_aligned() -> None:
    assert aligned([("a", "b"), ("long", "1")]) == ["a     b", "long  1"]


def test_one_question_of_each_task(tmp_path: Path) -> None:
    """Its intervals have a width, and a remark says what they are; the stock model has none against itself."""
    few = {key: question for key, question in QUESTIONS.items() if key[0] == 0 and key[1].endswith("1")}
    found = tuple(rows([DENSE, STRIDE], few, {entry: answers(entry) for entry in (DENSE, STRIDE)}))
    report = Evaluation(Reference(tmp_path), "tiny", {}, found, (), ()).report()
    table = report.tables[0]
    assert [row[table.columns.index("95 % CI")] for row in table.rows] == ["34.2-100.0", "34.2-100.0"]
    assert [row[-1] for row in table.rows] == ["-", "-65.8 to +65.8"]
    assert "One question of a task says little of that task" in " ".join(report.remarks)
