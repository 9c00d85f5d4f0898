"""``foveate eval tasks``: what is compared, what is kept when a run stops, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lmms_eval")

import tasks
from PIL import Image

from foveate import Stride
from foveate.errors import FoveateError
from foveate.lab.asker import Asker
from foveate.lab.cli import main
from foveate.lab.evaluation import report
from foveate.lab.evaluation.lmms import run
from foveate.lab.evaluation.lmms.report import Public
from foveate.lab.evaluation.lmms.run import evaluate
from foveate.lab.evaluation.request import Tasks
from foveate.lab.evaluation.statistics import mcnemar
from foveate.lab.terminal import CommandError

LIMIT = 12


def quiet(what: str, done: float) -> None:
    assert what
    assert 0 <= done <= 1


@pytest.fixture(scope="module", autouse=True)
def few_probes() -> Iterator[None]:
    """Budgets are measured on as many questions of a task as one batch has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "PROBES", 5)
        yield


@pytest.fixture(scope="module")
def request_(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    out = tmp_path_factory.mktemp("runs") / "out"
    methods = ("stride", "fastv", "dense")
    options = ("fastv.ratio=0.4", "fastv.layer=1")
    return Tasks(
        out,
        methods=methods,
        options=options,
        tasks=("scenes", "letters", "choices"),
        per_task=LIMIT,
        batch_size=5,
        include=local,
    )


@pytest.fixture(scope="module")
def found(request_: Tasks) -> Public:
    made = evaluate(request_, quiet)
    assert made is not None
    return made


def scores(request_: Tasks, name: str) -> dict[str, Any]:
    data = json.loads((request_.out / "scores" / f"{name}.json").read_text())
    return {task: np.array(list(scored["scores"].values())) for task, scored in data["tasks"].items()}


def test_what_is_run(found: Public) -> None:
    """The stock model, the methods, and Downsample at what each of them spends."""
    rows = [(row.label, row.budget) for row in found.rows]
    assert rows == [
        ("dense", None),
        ("stride", 0.5),
        ("fastv(layer=1)", 0.46),
        ("downsample", 0.5),
        ("downsample", 0.46),
    ]
    dense, stride, fastv, *small = found.rows
    assert (dense.spent.tokens, dense.spent.flops) == (1, 1)
    assert stride.spent.tokens == pytest.approx(0.5)
    assert fastv.spent.tokens == pytest.approx(0.46, abs=0.005)
    assert all(row.spent.tokens == pytest.approx(0.5, abs=0.03) for row in small)
    assert all(row.spent.flops < 0.9 for row in found.rows[1:])
    assert {name: row.accuracy.n for name, row in dense.tasks.items()} == dict.fromkeys(found.request.tasks, LIMIT)


def test_what_is_compared(request_: Tasks, found: Public) -> None:
    """Each number again, from the scores of single questions."""
    dense, stride = found.rows[:2]
    stock, mine = scores(request_, "scenes-dense"), scores(request_, "scenes-stride-at-0.5-tokens")
    small = scores(request_, "scenes-downsample-at-0.5-tokens")
    assert set(stock["scenes"]) <= {0.0, 1.0}
    here = stride.tasks["scenes"]
    assert dense.tasks["scenes"].accuracy.value == pytest.approx(stock["scenes"].mean())
    assert stock["scenes"].mean() > 0.8
    assert here.accuracy.value == pytest.approx(mine["scenes"].mean())
    assert here.retention is not None
    assert here.retention.value == pytest.approx(mine["scenes"].mean() / stock["scenes"].mean())
    assert here.retention.low <= here.retention.value <= here.retention.high
    assert here.paired == mcnemar(mine["scenes"], stock["scenes"])
    assert here.official == {"accuracy,none": pytest.approx(mine["scenes"].mean())}
    hard = (stock["scenes"] == 1) & (small["scenes"] == 0)
    assert here.group_a is not None
    assert here.group_a.n == hard.sum() > 0
    assert here.group_a.value == pytest.approx(mine["scenes"][hard].mean())
    assert stride.accuracy.value == pytest.approx(np.mean([row.accuracy.value for row in stride.tasks.values()]))
    assert dense.group_a is None
    assert dense.tasks["scenes"].retention is not None
    assert dense.tasks["scenes"].retention.value == 1


def test_grades_between_right_and_wrong(request_: Tasks, found: Public) -> None:
    stock, mine = scores(request_, "letters-dense"), scores(request_, "letters-stride-at-0.5-tokens")
    assert set(mine["letters"]) - {0.0, 1.0}
    here = found.rows[1].tasks["letters"]
    assert here.accuracy.value == pytest.approx(mine["letters"].mean())
    better, worse = (mine["letters"] > stock["letters"]).sum(), (mine["letters"] < stock["letters"]).sum()
    assert (here.paired.gained, here.paired.lost) == (better, worse)


def test_a_method_answers_what_it_answers_alone(request_: Tasks, found: Public) -> None:
    """The answers that were kept are those of the model with the method attached, asked one at a time."""
    import foveate_reference as reference
    from foveate.lab.chats import Frames, chat, question

    asker = Asker(*reference.load("qwen2_5_vl"))
    lines = (request_.out / "answers" / "scenes-stride-at-0.5-tokens-0.jsonl").read_text().splitlines()[1:]
    said = {line["id"]: line["text"] for line in map(json.loads, lines)}
    with asker.carrying(Stride(keep=0.5)):
        for number, sample in enumerate(tasks.samples()[:LIMIT]):
            pictures = [Image.fromarray(image) for image in sample.images]
            alone = asker.generate([chat(question(pictures, sample.question), Frames())], {"max_new_tokens": 1}, 1)
            assert alone[0].text == said[f"scenes/{number}/0/0"]


def test_the_report(found: Public) -> None:
    data = found.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["versions"]["lmms-eval"].startswith("0.7.")
    assert data["command"].startswith("foveate eval tasks --method stride --method fastv")
    written = report.write(found)
    assert written[2].read_bytes().startswith(b"\x89PNG")
    text = written[1].read_text()
    assert f"{3 * LIMIT} questions of scenes ({LIMIT}), letters ({LIMIT}), choices ({LIMIT}); the first {LIMIT}" in text
    assert "| stride | 0.5 |" in text
    assert "| scenes | stride | 0.5 |" in text
    assert "| scenes: accuracy,none |" in text


class Stop(BaseException):
    """Somebody pulls the plug."""


def asking(monkeypatch: pytest.MonkeyPatch, at: int = 1 << 30) -> list[int]:
    """Count the questions that reach the model; before number ``at``, stop."""
    asked: list[int] = []
    generate: Callable[..., Any] = Asker.generate

    def counted(self: Asker, chats: Any, *rest: Any) -> Any:
        if len(asked) + len(chats) > at:
            raise Stop
        asked.extend([1] * len(chats))
        return generate(self, chats, *rest)

    monkeypatch.setattr(Asker, "generate", counted)
    return asked


@pytest.fixture
def again(request_: Tasks, found: Public, tmp_path: Path) -> Tasks:
    """The finished run, in a folder of its own."""
    shutil.copytree(request_.out, tmp_path / "copy")
    return replace(request_, out=tmp_path / "copy")


def same(one: Public | None, other: Public) -> bool:
    assert one is not None
    return one.to_dict() == other.to_dict()


def test_a_finished_run_asks_nothing(again: Tasks, found: Public, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asking(monkeypatch, 0)
    monkeypatch.setattr(Asker, "spend", lambda *given: pytest.fail("what methods spend is known"))
    assert same(evaluate(again, quiet), found)
    assert not asked


def test_an_interrupted_run_goes_on(again: Tasks, found: Public, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a task, and of a line: what was answered is kept, and nothing else is asked."""
    for path in again.out.glob("*/*"):
        if not path.name.startswith("choices-"):  # those are there, as of an earlier run
            path.unlink()
    first = asking(monkeypatch, LIMIT + 8)  # a method later than the stock model, a batch into a task
    with pytest.raises(Stop):
        evaluate(again, quiet)
    assert not (again.out / "scores" / "letters-dense.json").exists()
    assert (again.out / "scores" / "scenes-dense.json").exists()
    half = again.out / "answers" / "letters-dense-0.jsonl"
    kept = half.read_bytes()
    assert kept.count(b"\n") == 1 + len(first) - LIMIT
    half.write_bytes(kept[:-10])  # the last answer was cut off while it was written
    monkeypatch.undo()
    rest = asking(monkeypatch)
    assert same(evaluate(again, quiet), found)
    generated = 2 * LIMIT * len(found.rows)  # choices are not generated
    assert len(rest) == generated - len(first) + 1


def test_more_methods_and_tasks_later(again: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asking(monkeypatch)
    wider = replace(again, tasks=("scenes", "both"), methods=("stride",), options=("keep=0.3",))
    made = evaluate(wider, quiet)
    assert made is not None
    assert [(row.label, row.budget) for row in made.rows] == [("dense", None), ("stride", 0.3), ("downsample", 0.3)]
    assert len(asked) == 2 * LIMIT * 3 + 2 * LIMIT * 2 - 2 * LIMIT  # `both` is two tasks; dense on scenes is there
    assert "handed_in is not in the table: lmms-eval gives its answers no score one by one." in made.notes


def test_budgets(again: Tasks) -> None:
    """Methods are set to them; what cannot be reached is said, and Downsample is there for each."""
    wanted = replace(again, tasks=("scenes",), methods=("vtw", "ipcv"), options=(), budgets=(0.6,))
    made = evaluate(wanted, quiet)
    assert made is not None
    assert [(row.label, row.budget) for row in made.rows] == [("dense", None), ("vtw", 0.6), ("downsample", 0.6)]
    assert [(missed.label, missed.budget) for missed in made.missed] == [("ipcv", 0.6)]
    flops = evaluate(replace(wanted, by="flops", methods=("ipcv",), budgets=(0.9,)), quiet)
    assert flops is not None
    assert [row.label for row in flops.rows] == ["dense", "ipcv", "downsample"]
    assert flops.rows[1].spent.flops == pytest.approx(0.9, abs=0.05)
    assert flops.rows[1].spent.tokens == 1
    kv = evaluate(replace(wanted, by="kv", methods=("stride",), budgets=(0.7,)), quiet)
    assert kv is not None
    assert kv.rows[1].spent.kv == pytest.approx(0.7, abs=0.05)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown task": (
        dict(tasks=("scens",)),
        "lmms-eval has no task 'scens': did you mean scenes",
    ),
    "nothing like a task": (
        dict(tasks=("qqqqqqqqqq",)),
        "lmms-eval has no task 'qqqqqqqqqq': `lmms-eval tasks list` shows all",
    ),
    "nearly a task": (dict(tasks=("mm",)), "lmms-eval has no task 'mm': did you mean "),
    "task without images": (
        dict(tasks=("nothing_to_see",)),
        "'nothing_to_see' has no images or videos in its questions",
    ),
    "task whose column is missing": (
        dict(tasks=("torn",)),
        "question 0 of the task 'torn' cannot be made: KeyError: 'images'",
    ),
    "broken image": (
        dict(tasks=("broken",)),
        "question 2 of the task 'broken' cannot be made: UnidentifiedImageError",
    ),
    "missing image": (
        dict(tasks=("missing",)),
        "question 0 of the task 'missing': the image 'nowhere.png' cannot be read: there is no such file",
    ),
    "task without data": (
        dict(tasks=("nowhere",)),
        "the data of the task 'nowhere' cannot be loaded: FileNotFoundError",
    ),
    "task without scores": (
        dict(tasks=("handed_in",)),
        "'handed_in' cannot be compared: lmms-eval gives its answers no score",
    ),
    "unknown method": (dict(methods=("fastvv",)), "there is no method 'fastvv'"),
    "oracle": (dict(methods=("oracle",)), "oracle needs the reference benchmark's evidence and answers"),
    "no method": (dict(methods=()), "say what to measure: --method NAME"),
    "layer out of range": (dict(options=("fastv.layer=40",)), "there is no decoder layer 40"),
    "unknown model": (dict(model="./nowhere"), "there is no model folder './nowhere'"),
    "task twice": (dict(tasks=("scenes", "scenes")), "--task scenes is given twice"),
    "limit of nothing": (dict(per_task=0), "--per-task 0: give a whole number, at least 1"),
    "no tasks there": (dict(include=Path("nowhere")), "--include-path 'nowhere': there is no such folder"),
    "budget over one": (dict(budgets=(2.0,)), "--budget 2.0: give a share"),
    "other settings": (
        dict(per_task=3),
        "is of another run, whose per_task was 12, and now is 3: give --out another name",
    ),
    "other model": (dict(model="reference-llava"), "is of another run, whose model was"),
}


def test_a_task_that_has_changed(again: Tasks, local: Path, tmp_path: Path) -> None:
    """What was answered to other questions is no answer to these."""
    shutil.copytree(local, tmp_path / "tasks")
    task = tmp_path / "tasks" / "scenes.yaml"
    for before, after in (("doc_to_text: question", "doc_to_text: id"), ("max_new_tokens: 1", "max_new_tokens: 2")):
        text = task.read_text()
        assert before in text
        task.write_text(text.replace(before, after))
        with pytest.raises(CommandError, match="is of another run, whose questions was"):
            evaluate(replace(again, tasks=("scenes",), include=tmp_path / "tasks"), quiet)
        task.write_text(text)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(again: Tasks, mistake: str) -> None:
    changed, sentence = MISTAKES[mistake]
    before = {path: path.read_bytes() for path in again.out.glob("*/*")}
    if "options" not in changed and "methods" in changed:
        changed = {"options": (), **changed}
    with pytest.raises(FoveateError) as error:
        evaluate(replace(again, **changed), quiet)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert all(path.read_bytes() == content for path, content in before.items()), "what was measured stays"


def test_the_folder_is_a_file(request_: Tasks, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("here first")
    with pytest.raises(CommandError, match="is a file; give the name of a folder"):
        evaluate(replace(request_, out=tmp_path / "out"), quiet)
    assert (tmp_path / "out").read_text() == "here first"


def test_the_command(request_: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copytree(request_.out, tmp_path / "out")
    words = [
        "tasks",
        "--task",
        "scenes",
        "--method",
        "stride",
        "--per-task",
        str(LIMIT),
        "--batch-size",
        "5",
    ]
    options = ["--include-path", str(request_.include), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["foveate", "eval", *words, *options, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    data = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in data["rows"]] == ["dense", "stride", "downsample"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == data
