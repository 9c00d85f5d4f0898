"""Two rounds on a reference model: rows are what the evaluation says, and what is known is not asked again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import foveate_reference as reference
from foveate.lab.bench import shapes
from foveate.lab.evaluation import reference as protocol
from foveate.lab.evaluation.request import Reference
from foveate.lab.leaderboard import rounds
from foveate.lab.leaderboard.board import Leaderboard, read
from foveate.lab.leaderboard.request import Board
from foveate.lab.leaderboard.speed import Timer
from foveate.lab.terminal import CommandError
from foveate.lab.typed import request as understood

CONTROLS = ("stride",)


def silent(what: str, done: float) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def _small_and_loaded_once() -> Iterator[None]:
    if not (reference.PATHS["qwen2_5_vl"] / "model.safetensors").is_file():
        pytest.skip("the weights of the reference model are missing")
    asker = protocol.load_subject("reference")
    tiny = shapes.Shape(lambda: shapes.qwen2_5_small(128, 6, tower=64, blocks=2), "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "load_subject", lambda name, adapter=None: asker)
        patch.setattr(rounds, "CONTROLS", CONTROLS)
        patch.setattr(rounds, "BESIDE", ("blind", "oracle", *CONTROLS))
        patch.setitem(shapes.SHAPES, "small-qwen2.5-vl", tiny)
        shapes.skeleton.cache_clear()
        yield
    shapes.skeleton.cache_clear()


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return Board(
        tmp_path_factory.mktemp("board") / "out",
        methods=("divprune", "ipcv"),
        flops=(0.8,),
        kv=(0.5,),
        tasks=("color", "count"),
        per_task=1,
        more=1,
        best=1,
        tokens=64,
        repeats=1,
    )


@pytest.fixture(scope="module")
def found(request_: Board) -> Leaderboard:
    guessed = rounds.plan(request_, silent)
    assert guessed.lines[-1].entry == "second round"
    assert guessed.lines[-1].left == (1 + 3) * 2 * 2
    return rounds.measure(request_, silent)


def answers(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "answers").iterdir()}


def test_rows(found: Leaderboard, request_: Board) -> None:
    assert {label for label, by, _ in found.rows if by == "flops"} >= {"divprune", "oracle", *CONTROLS}
    assert {label for label, by, _ in found.rows if by is None} == {"dense", "blind", "antioracle"}
    assert found.missed["ipcv", "kv", 0.5].closest == pytest.approx(1.0)
    assert list(found.groups) == ["attribute", "counting"]
    assert read(request_.out).to_dict() == found.to_dict()
    for row in found.rows.values():
        again = row.label in ("divprune", "dense", "blind", "oracle", *CONTROLS)
        assert row.seeds == ((0, 1) if again and row.by else (0,)) or row.by is None
        assert row.whole.accuracy.n == 2 * len(row.seeds) or row.label == "antioracle"
        parts = [each.accuracy.value for each in row.groups.values()]
        assert row.whole.accuracy.value == pytest.approx(sum(parts) / len(parts)), (
            "the mean over tasks, one in each group"
        )
        if row.budget is not None:
            spent = {"flops": row.spent.flops, "kv": row.spent.kv}[row.by]
            assert spent == pytest.approx(row.budget, abs=0.05)
    kinds = {label: row.kind for (label, _, _), row in found.rows.items()}
    assert (kinds["divprune"].acts, kinds["divprune"].attention) == (("lm_entry",), False)
    assert {kinds[name].role for name in CONTROLS} == {"control"}
    assert kinds["oracle"].role == "bound"


def test_speed(found: Leaderboard) -> None:
    """Of the best and the controls, beside the stock model and Stride in one run; Stride is as fast as itself."""
    timed = {key for key, row in found.rows.items() if row.speed is not None}
    assert {label for label, _, _ in timed} == {"divprune", *CONTROLS}
    for key in timed:
        speed = found.rows[key].speed
        assert speed.stock.median > 0
        assert "foveate bench" in speed.command
        assert speed.spent.flops == pytest.approx(0.8, abs=0.1) or key[1] == "kv"
    stride = found.rows["stride", "flops", 0.8].speed
    assert stride.stride.median == 1.0


def test_a_row_says_what_asks_it_again(found: Leaderboard, tmp_path: Path) -> None:
    for label in ("divprune", "dense"):
        row = next(row for row in found.rows.values() if row.label == label)
        again = protocol.evaluate(replace(understood(Reference, row.command), out=tmp_path), silent)
        same = next(each for each in again.rows if each.label == label)
        assert same.accuracy == row.whole.accuracy
        assert same.difference == row.whole.difference
        assert same.spent == row.spent


def test_another_method_is_asked_alone(found: Leaderboard, request_: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rows stay, answers and times, too; and a run that goes on asks and times nothing again."""
    before, there = found.to_dict(), answers(request_.out)
    timed: list[str] = []
    original = Timer.__call__
    monkeypatch.setattr(Timer, "__call__", lambda self, rows: timed.append(rows[0].label) or original(self, rows))
    added = rounds.measure(replace(request_, methods=("vtw",), best=2), silent).to_dict()
    now = answers(request_.out)
    assert {name: now[name] for name in there} == there
    new = {name.partition("-")[0] for name in set(now) - set(there)}
    assert "vtw" in new
    assert new <= {"vtw", "ipcv"}
    old = [row for row in added["rows"] if row["label"] not in ("vtw", "ipcv")]
    assert old == [row for row in before["rows"] if row["label"] != "ipcv"]
    assert set(timed) <= {"vtw", "ipcv"}
    timed.clear()
    again = rounds.measure(replace(request_, methods=("vtw",), best=2), silent)
    assert again.to_dict() == added
    exact = rounds.plan(replace(request_, methods=("vtw",), best=2), silent)
    assert exact.hours == 0
    with pytest.raises(CommandError, match="of another run, whose per_task was 1, and now is 3"):
        rounds.measure(replace(request_, per_task=3), silent)
