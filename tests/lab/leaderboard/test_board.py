"""Rows of a leaderboard: kept, read back, mixed with others or refused; and shown on a page that needs no script."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from boards import BOUND, CONTROL, METHOD, NASTY, made, row

import foveate_reference as reference
from foveate.lab.cli import measuring
from foveate.lab.leaderboard import page
from foveate.lab.leaderboard.board import Leaderboard, Missed, check_together, read
from foveate.lab.leaderboard.request import Board
from foveate.lab.terminal import CommandError


def test_every_task_is_in_one_group() -> None:
    tasks = [task for group in reference.GROUPS.values() for task in group]
    assert sorted(tasks) == sorted(reference.TASKS)


def test_a_file(tmp_path: Path) -> None:
    board = made()
    board.write(tmp_path)
    assert read(tmp_path).to_dict() == board.to_dict()
    (tmp_path / "stored.json").write_text(json.dumps({"found": board.to_dict()}))
    assert read(tmp_path / "stored.json").rows.keys() == board.rows.keys()


def test_what_is_there_already() -> None:
    """More questions count, times stay where the method is the same, and a method either spends a budget or does not."""
    board = made()
    old = board.rows["fastv", "flops", 0.65]
    more = replace(old, seeds=(0, 1), speed=None)
    board.add([more], [])
    assert board.rows[old.key] == replace(more, speed=old.speed)
    board.add([old], [])
    assert board.rows[old.key].seeds == (0, 1)
    board.add([replace(more, method={"method": "fastv", "keep": 0.1})], [])
    assert board.rows[old.key].speed is None
    board.add([], [Missed("fastv", "flops", 0.65, 0.9)])
    assert old.key not in board.rows
    board.add([old], [])
    assert old.key not in board.missed


def test_what_is_no_leaderboard(tmp_path: Path) -> None:
    with pytest.raises(
        CommandError, match=r"there are no results in .*: `foveate leaderboard --out FOLDER` writes one"
    ):
        read(tmp_path)
    with pytest.raises(CommandError, match="there are no results in"):
        read(tmp_path / "nowhere")
    for text, why in (("{", "as JSON"), ("[]", "is not the results"), ('{"rows": []}', "'schema' is missing")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(CommandError, match=why):
            read(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({**made().to_dict(), "schema": 99}))
    with pytest.raises(CommandError, match="its schema is 99, and 1 is read here"):
        read(tmp_path)


def test_what_cannot_stand_together() -> None:
    check_together([made("a"), made("b")])
    with pytest.raises(CommandError, match="--from names two runs of the model a"):
        check_together([made("a"), made("b"), made("a")])
    other = made("b")
    other.common["versions"] = {"torch": "1"}
    with pytest.raises(
        CommandError, match=r'b was measured with {"torch": "1"} and a with .*: measure both with the same'
    ):
        check_together([made("a"), other])


def test_ranks() -> None:
    """Among methods and controls at the same cost; a method is above the controls if its whole interval is."""
    places = page.places(made())
    at = {label: places[label, "flops", 0.65] for label in ("fastv", NASTY, "stride")}
    assert {label: (place.rank, place.against) for label, place in at.items()} == {
        NASTY: (1, "above"),
        "stride": (2, ""),
        "fastv": (3, "below"),
    }
    assert places["dense", None, None].rank is None
    board = made()
    board.add([row("vtw", "kv", 0.5, 0.845, METHOD), row("oracle", "kv", 0.5, 0.99, BOUND)], [])
    assert page.places(board)["vtw", "kv", 0.5] == page.Place(2, "level")
    board.rows = {key: each for key, each in board.rows.items() if each.kind != CONTROL}
    assert page.places(board)["vtw", "kv", 0.5].against == ""


def test_the_page_is_a_plain_table() -> None:
    """Every row with its command, before any script runs; words are words, and nothing is loaded from elsewhere."""
    boards = [made("a"), made("b")]
    text = page.render(boards)
    rows = re.findall(r'<tr class="(\w+)"(.*?)</tr>', text)
    assert [role for role, _ in rows[:7]] == ["bound", "method", "control", "method", "control", "method", "missed"]
    assert len(rows) == 14
    assert all(len(re.findall("<t[dh]", row)) == len(re.findall('<th scope="col"', text)) for _, row in rows)
    for each in boards[0].rows.values():
        assert html.escape(each.command) in text
    assert NASTY not in text
    assert "closest 1.00" in rows[6][1]
    assert re.search("70.0 <small>69.0 to 71.0</small>.*?-20.0 <small>-21.0 to -19.0</small>", text)
    assert "90.0 <small>89.0 to 91.0</small></td><td></td>" in rows[0][1], "the stock model is not compared with itself"
    assert not re.search("https?:", text)
    assert not re.search(r"\{\{\w+\}\}", text)
    assert '<option value="0.65" selected>' in text


MISTAKES = {
    "unknown method": (Board(methods=("fastvv",)), "there is no method 'fastvv'"),
    "option of nobody": (Board(flops=(0.0,)), "--flops 0.0: give a share"),
    "budget twice": (Board(kv=(0.5, 0.5)), "--kv 0.5 is given twice"),
    "no budget": (Board(flops=(), kv=()), "say what methods may spend"),
    "no second round": (Board(more=0), "--more 0: give a whole number, at least 1"),
    "fewer than none": (Board(best=-1), "--best -1: give a whole number, 0 or more"),
    "shape": (Board(shape="small"), "--shape 'small'"),
    "shown and measured": (Board(source=(Path("x"),), kv=(0.1,)), "and not --kv"),
    "shown twice": (Board(source=(Path("x"), Path("x"))), "--from x is given twice"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, tmp_path: Path) -> None:
    request, sentence = MISTAKES[mistake]
    with pytest.raises(Exception, match=re.escape(sentence)):
        replace(request, out=tmp_path / "out").check()


def test_a_page_that_was_written_while_results_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown again is checked again before the page is written."""
    made().write(tmp_path)
    theirs = tmp_path / "leaderboard.html"

    def check(boards: list[Leaderboard]) -> None:
        check_together(boards)
        theirs.write_text("theirs")

    monkeypatch.setattr("foveate.lab.leaderboard.board.check_together", check)
    with pytest.raises(CommandError, match="is there already"):
        measuring.leaderboard(out=tmp_path, source=[tmp_path], json=False)
    assert theirs.read_text() == "theirs"


def test_a_page_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.html").write_text("mine")
    with pytest.raises(CommandError, match="is there already"):
        Board(tmp_path, (tmp_path,)).check()
    Board(tmp_path, (tmp_path,), overwrite=True).check()
