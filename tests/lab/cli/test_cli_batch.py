"""``foveate run --data``: a file of questions, and what is left of it when something goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import saved
from command import Here, as_json, draw, needs_weights

from foveate import Stride
from foveate.errors import InputError
from foveate.lab import terminal
from foveate.lab.batch import Request, Result, show
from foveate.lab.chats import Frames, chat

LONG = "shape of red in topleft of image with star ?"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Five questions of different lengths and sizes, of which two cannot be asked."""
    (tmp_path / "set").mkdir()
    draw(tmp_path / "set" / "a.png")
    draw(tmp_path / "set" / "b.png", 1, size=(200, 120))
    chat = [{"role": "user", "content": f"<image>color of star ?<image>{LONG}"}]
    rows = [
        {"image": "a.png", "prompt": "texture of background ?"},
        {"images": ["a.png", "b.png"], "prompt": LONG, "id": "two"},
        {"image": "none.png", "prompt": "color of star ?"},
        {"images": ["b.png", "a.png"], "messages": chat},
        {"prompt": "color of star ?"},
    ]
    path = tmp_path / "set" / "mine.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), '{"image": "a.png"']))
    return path


@needs_weights
def test_a_file_of_questions(here: Here, mine: Path, tmp_path: Path) -> None:
    """A ragged batch answers as each question alone; what cannot be asked is counted; what is cut off is asked again."""
    words = ("run", "--data", "set/mine.jsonl", "--method", "stride", "--new-tokens", "2")
    done = here(*words, "--batch-size", "4", "--json")
    assert done.returncode == 1
    counts = json.loads(done.stdout)
    assert [counts[key] for key in ("records", "answered", "failed", "answered_before")] == [6, 4, 2, 0]
    assert counts["tokens"] == sum(row.get("tokens", 0) for row in lines(tmp_path / "answers.jsonl")) > 0
    assert counts["rows_per_second"] > 0 < counts["tokens_per_second"]
    before = done.stderr[: done.stderr.index("loading")]
    assert (
        "2 lines of 'set/mine.jsonl' are wrong:\n  line 3: 'none.png': there is no such file\n  line 6: not" in before
    )
    assert "they get an error in place of an answer" in before
    assert "1 of 6 records have no image or video and are asked as text alone; the first: 5" in done.stderr
    found = {row["id"]: row for row in lines(tmp_path / "answers.jsonl")}
    assert set(found) == {"1", "two", "3", "4", "5", "6"}
    assert "there is no such file" in found["3"]["error"]
    assert "not JSON" in found["6"]["error"]
    here(*words, "--batch-size", "1", "--out", "alone.jsonl")
    assert {row["id"]: row for row in lines(tmp_path / "alone.jsonl")} == found

    whole = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text(whole[0] + whole[1][:20])  # as a process that was killed leaves it
    draw(tmp_path / "set" / "none.png", 2)
    mine.write_text(mine.read_text() + ', "prompt": "color of star ?"}')
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert "6: 5 answered, 1 were there" in done.stdout
    assert "rows/s" in done.stdout
    after = {row["id"]: row for row in lines(tmp_path / "answers.jsonl")}
    assert len(lines(tmp_path / "answers.jsonl")) == 6
    assert all("answer" in row for row in after.values())
    assert {name: after[name] for name in ("1", "two", "4", "5")} == {
        name: found[name] for name in ("1", "two", "4", "5")
    }
    assert as_json(here(*words, "--json"))["answered_before"] == 6


def test_what_failed_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that a model or a library refused, in the order of the file, but for what was said before the work."""
    request = Request(tmp_path / "mine.jsonl", tmp_path / "answers.jsonl", "reference", Stride())
    wrong = tuple((number, "too wide") for number in (2, 30))
    show(Result(request, 40, 0, 37, 3, 50, 1.0, wrong), terminal.out)
    said = capsys.readouterr().err
    assert "2 lines of " in said
    assert "  line 2: too wide\n  line 30: too wide\nmend what is wrong; the same command asks again" in said


@needs_weights
def test_answers_of_another_run_stay(here: Here, mine: Path, tmp_path: Path) -> None:
    words = ("run", "--data", "set/mine.jsonl", "--new-tokens", "1", "--method")
    (tmp_path / "answers.jsonl").write_text("here first")
    done = here(*words, "stride")
    assert done.returncode == 2
    assert "'answers.jsonl' is there already: give --out" in done.stderr
    assert here(*words, "stride", "--overwrite").returncode == 1
    before = (tmp_path / "answers.jsonl").read_text()
    done = here(*words, "vtw")
    assert done.returncode == 2
    assert "whose method was" in done.stderr
    assert (tmp_path / "answers.jsonl").read_text() == before


def test_images_and_videos(here: Here, tmp_path: Path) -> None:
    """Of a model on disk: they go in batches of their own, and every record gets its answer."""
    saved.film(tmp_path / "walk.mp4")
    saved.picture(24, 32).save(tmp_path / "a.png")
    rows = [
        {"video": "walk.mp4", "prompt": "the cat"},
        {"image": "a.png", "prompt": "the dog and the bird"},
        {"messages": [{"role": "user", "content": "the bird <video>"}], "videos": ["walk.mp4"]},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("run", "--model", str(saved.folder("qwen2_5_vl")), "--data", "mine.jsonl", "--method", "luvc")
    done = here(*words, "--new-tokens", "3", "--frames", "4")
    assert done.returncode == 0, (tmp_path / "answers.jsonl").read_text()
    assert {row["id"]: row["tokens"] for row in lines(tmp_path / "answers.jsonl")} == {"1": 3, "2": 3, "3": 3}


MISTAKES = {
    "no file": (("--data", "none.jsonl"), "there is no file 'none.jsonl'"),
    "nothing asked": ((), "say what to ask: --image and --prompt, or a file of questions, --data"),
    "one question and many": (("--data", "set/mine.jsonl", "--prompt", "a"), "--prompt belongs to one question"),
    "answers of one": (("--image", "set/a.png", "--prompt", "a", "--out", "x"), "--out belongs to --data"),
    "answers over data": (("--data", "set/mine.jsonl", "--out", "set/../set/mine.jsonl"), "is the file of --data"),
    "answers nowhere": (("--data", "set/mine.jsonl", "--out", "none/x"), "cannot be written"),
    "two of a name": (
        ("--data", "set/twice.jsonl"),
        "line 2 of 'set/twice.jsonl': the id '2' is that of line 1, too: give each its own",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(here: Here, mine: Path, mistake: str) -> None:
    (mine.parent / "twice.jsonl").write_text('{"id": 2, "prompt": "a"}\n{"prompt": "a"}')
    before = mine.read_text()
    words, sentence = MISTAKES[mistake]
    done = here("run", "--method", "stride", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""
    assert mine.read_text() == before


@needs_weights
def test_which_model_answers_is_said(here: Here, mine: Path) -> None:
    words = ("run", "--image", "set/a.png", "--no-compare", "--new-tokens", "1")
    done = here(*words, "--prompt", "What is this cat ?", "--method", "fastv")
    assert done.returncode == 0, done.stderr
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert "reference answers" in note
    assert "139 words; of what is asked it does not know 'What', 'this'." in note
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "fastv ranks by the attention of text before layer 2" in warning
    assert "--option layer=4" in warning
    done = here(*words, "--prompt", "color of star ?", "--method", "fastv", "--option", "layer=4", "--json")
    assert "warning: " not in done.stderr
    assert "does not know" not in done.stderr
    assert "reference answers" in done.stderr
    assert json.loads(done.stdout)["method"]["layer"] == 4


@pytest.mark.parametrize("kind", ["image", "video"])
def test_an_address_that_does_not_answer_is_an_error_of_its_record(kind: str) -> None:
    there = "http://127.0.0.1:1/one.png"
    asked = [{"role": "user", "content": [{"type": kind, "url": there}, {"type": "text", "text": "a"}]}]
    with pytest.raises(InputError, match=f"the {kind} '{there}' cannot be read"):
        chat(asked, Frames())
