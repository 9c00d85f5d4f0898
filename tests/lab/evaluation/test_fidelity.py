"""``foveate eval fidelity`` without a process: what is kept, what goes on, what is refused."""

from __future__ import annotations

import json
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate import DivPrune, FastV
from foveate.lab.asker import Asker
from foveate.lab.evaluation import costs
from foveate.lab.evaluation.fidelity import measuring
from foveate.lab.evaluation.fidelity.measuring import measure
from foveate.lab.evaluation.forced import asked, hear
from foveate.lab.evaluation.questions import of_benchmark
from foveate.lab.evaluation.report import write
from foveate.lab.evaluation.request import Fidelity
from foveate.lab.evaluation.statistics import average
from foveate.lab.terminal import CommandError
from foveate_reference.data import samples


def request(out: Path, **changes: Any) -> Fidelity:
    usual: dict[str, Any] = dict(
        methods=("stride", "divprune"),
        budgets=(0.25,),
        tasks=("color", "pair"),
        per_task=2,
        batch_size=2,
        new_tokens=2,
    )
    return Fidelity(out, **{**usual, **changes})


@pytest.fixture(autouse=True)
def one_model(qwen: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "load_asker", lambda *about: qwen)


def silent(what: str, done: float) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, qwen: Asker) -> Path:
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "load_asker", lambda *about: qwen)
        write(measure(request(out), silent))
    return out


def test_numbers_are_those_of_the_prompts(whole: Path, qwen: Asker) -> None:
    found = json.loads((whole / "results.json").read_text())
    assert (found["count"], found["answer_tokens"], found["by"]) == (4, 2.0, "tokens")
    rows = {(row["label"], row["budget"]): row for row in found["rows"]}
    assert set(rows) == {("stride", 0.25), ("divprune", 0.25)}
    row = rows["divprune", 0.25]
    prompts = of_benchmark(samples(tasks=("color", "pair"), per_task=2), 0)
    heard = [each for prompt in prompts for each in hear(qwen.model, DivPrune(keep=0.25), asked(qwen, [prompt], 2))]
    assert row["kl"]["value"] == pytest.approx(np.mean([np.mean(each.kl) for each in heard]), rel=1e-3)
    assert row["first_kl"]["value"] == pytest.approx(np.mean([each.kl[0] for each in heard]), rel=1e-3)
    assert row["top1"]["value"] == pytest.approx(np.mean([np.mean(each.agree) for each in heard]))
    assert row["same"]["value"] == pytest.approx(np.mean([all(each.agree) for each in heard]))
    assert row["kl"]["low"] <= row["kl"]["value"] <= row["kl"]["high"]
    assert row["spent"]["tokens"] == pytest.approx(0.25)
    assert "| stride | 0.25 | 25.0% |" in (whole / "results.md").read_text()


@pytest.mark.parametrize("moment", [0.1, 0.7])
def test_an_interrupted_run_ends_like_any_other(whole: Path, tmp_path: Path, moment: float) -> None:
    def stop(what: str, done: float) -> None:
        if " at 0." in what and done > moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(request(tmp_path), stop)
    path = sorted((tmp_path / "answers").glob("*.jsonl"))[0]
    path.write_bytes(path.read_bytes()[:-7])  # the last line was cut in the middle
    write(measure(request(tmp_path), silent))
    assert contents(tmp_path) == contents(whole)


def test_a_finished_run_asks_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(whole)
    for module in (measuring, costs):
        monkeypatch.setattr(module, "hear", lambda *given: pytest.fail("everything has been heard"))
    write(measure(request(whole), silent))
    assert contents(whole) == before


def test_other_settings_are_refused(whole: Path, qwen: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(whole)
    for changes in (
        {"per_task": 3},
        {"seeds": (1,)},
        {"new_tokens": 4},
        {"batch_size": 3},
    ):
        with pytest.raises(CommandError, match="is of another run"):
            measure(request(whole, **changes), silent)
    with pytest.MonkeyPatch.context() as patch:
        another = copy(qwen)
        another.digest = "another"
        patch.setattr(measuring, "load_asker", lambda *about: another)
        with pytest.raises(CommandError, match="whose weights was"):
            measure(request(whole), silent)
    assert contents(whole) == before


@pytest.mark.parametrize("name", ["results.json", "results.md"])
def test_a_report_without_its_answers_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CommandError, match="is there already, without its answers"):
        measure(request(tmp_path), silent)
    assert (tmp_path / name).read_text() == "{}"


def test_as_is(tmp_path: Path) -> None:
    described = tuple(json.dumps(FastV(ratio=keep, layer=3).to_dict()) for keep in (0.5, 0.2))
    found = measure(request(tmp_path, methods=(), described=described, budgets=(), as_is=True), silent)
    assert [(line.label, line.budget) for line in found.rows] == [
        ("fastv(layer=3, ratio=0.5)", None),
        ("fastv(layer=3, ratio=0.2)", None),
    ]
    assert [line.spent.tokens for line in found.rows] == pytest.approx([0.3 + 0.7 * 0.5, 0.3 + 0.7 * 0.2], abs=0.01)
    assert "--as-is" in found.command


def test_a_budget_of_kv(tmp_path: Path) -> None:
    (line,) = measure(request(tmp_path, methods=("stride",), budgets=(0.4,), by="kv"), silent).rows
    assert line.spent.kv == pytest.approx(0.4, abs=0.015)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a bound": ({"methods": ("oracle",)}, "oracle needs the reference benchmark's evidence"),
    "blind": ({"methods": ("blind",)}, "blind needs the reference benchmark's evidence"),
    "nothing to compare": ({"methods": ("dense",)}, "name a method, too"),
    "a method for longer answers": (
        {"methods": ("dycoke",), "options": ("ratio=1.0",), "new_tokens": 1},
        "acts on the tokens that follow the first one",
    ),
    "both": ({"as_is": True}, "--as-is takes methods as their options say"),
    "no tokens": ({"new_tokens": 0}, "--new-tokens 0: give a whole number, at least 1"),
    "no batch": ({"batch_size": 0}, "--batch-size 0: give a whole number, at least 1"),
    "no samples": ({"samples": 0}, "--samples 0: give a whole number, at least 1"),
    "two sources": ({"data": Path("a"), "prompts": ("What?",)}, "leave out --image and --prompt"),
    "unknown task": ({"tasks": ("colour",)}, "'colour'"),
    "unknown cost": ({"by": "seconds"}, "choose tokens, flops, kv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tmp_path: Path, mistake: str) -> None:
    changes, sentence = MISTAKES[mistake]
    with pytest.raises(CommandError if "longer" not in mistake else Exception, match=sentence):
        measure(request(tmp_path / "out", **changes), silent)
    assert not (tmp_path / "out").exists(), "nothing has begun"


def test_methods_for_longer_answers(tmp_path: Path) -> None:
    found = measure(request(tmp_path, methods=("dycoke",), budgets=(), as_is=True), silent)
    assert [line.label for line in found.rows] == ["dycoke"]


def test_an_average_and_its_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = average(values)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert average(values) == found
    same = average(np.full(7, 0.25))
    assert (same.value, same.low, same.high, same.n) == (0.25, None, None, 7)
