"""What is there is not lost unasked, by one rule in all commands that write."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Here, draw
from PIL import Image

from foveate.lab import demo, outputs
from foveate.lab.evaluation.store import check_folder
from foveate.lab.terminal import CommandError

TUNE = ("tune", "-M", "fastv", "--budget", "0.5")
#: A command line, and a file that it would write over.
TAKEN = {
    "demo": (("demo", "--quick", "-o", "out"), "out/report.html"),
    "a picture of the demo": (("demo", "--quick", "-o", "out"), "out/image-02-tome.png"),
    "report": (("report", "-o", "page.html"), "page.html"),
    "run": (("run", "-i", "one.png", "-p", "what ?", "-M", "fastv", "--overlay", "out"), "out/01-one-fastv.png"),
    "run --data": (("run", "-d", "mine.jsonl", "-M", "fastv", "-o", "answers.jsonl"), "answers.jsonl"),
    "bench": (("bench", "-M", "stride", "--plot", "mine.png"), "mine.png"),
    "bench --from": (("bench", "--from", "bench.json", "--table", "mine.md"), "mine.md"),
    "train reference": (("train", "reference", "-o", "out"), "out/mine.txt"),
    "train adsc": (("train", "adsc", "-o", "out"), "out/mine.txt"),
    "tune": ((*TUNE, "-o", "out"), "out/method.json"),
    "tune, and what was found": ((*TUNE, "-o", "out"), "out/found.json"),
    "the report of tune": ((*TUNE, "-o", "out"), "out/results.md"),
    "eval reference": (("eval", "reference", "-M", "fastv", "-o", "out"), "out/results.json"),
    "the curve of eval": (("eval", "reference", "-M", "fastv", "-o", "out"), "out/accuracy.png"),
    "eval fidelity": (("eval", "fidelity", "-M", "fastv", "-o", "out"), "out/results.md"),
    "leaderboard": (("leaderboard", "-M", "fastv", "-o", "out"), "out/results.json"),
    "the page of leaderboard": (("leaderboard", "-M", "fastv", "-o", "out"), "out/leaderboard.html"),
    "leaderboard --from": (("leaderboard", "--from", "x", "-o", "out"), "out/leaderboard.html"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_there_is_not_lost(name: str, here: Here, tmp_path: Path) -> None:
    if name == "bench":
        pytest.importorskip("matplotlib")
    words, file = TAKEN[name]
    draw(tmp_path / "one.png")
    (tmp_path / "mine.jsonl").write_text('{"image": "one.png", "prompt": "what ?"}\n')
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    done = here(*words)
    assert done.returncode == 2
    assert "there already" in done.stderr
    assert "--overwrite to begin anew" in done.stderr
    assert (tmp_path / file).read_text() == "mine"


@pytest.mark.parametrize("name", [name for name, (_, file) in TAKEN.items() if not file.endswith(".txt")])
def test_a_folder_is_no_file(name: str, here: Here, tmp_path: Path) -> None:
    """It is said before anything is loaded, and --overwrite does not take away a folder where no command makes one."""
    if name == "bench":
        pytest.importorskip("matplotlib")
    words, file = TAKEN[name]
    draw(tmp_path / "one.png")
    (tmp_path / "mine.jsonl").write_text('{"image": "one.png", "prompt": "what ?"}\n')
    (tmp_path / file / "mine").mkdir(parents=True)
    done = here(*words)
    assert done.returncode == 2
    assert "is a folder" in done.stderr or "give the name of a file" in done.stderr
    assert (tmp_path / file / "mine").is_dir()


def test_a_file_that_came_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert outputs.place_now(page, overwrite=False) == page
    assert capsys.readouterr().err == ""
    page.symlink_to(tmp_path / "nowhere")
    (tmp_path / "page-2.html").write_text("theirs")
    assert outputs.place_now(page, overwrite=False) == tmp_path / "page-3.html"
    assert "was written meanwhile, by somebody else: this goes into" in capsys.readouterr().err
    assert outputs.place_now(page, overwrite=True) == page


def test_a_picture_that_came_meanwhile(tmp_path: Path) -> None:
    """Of the demo, and of `foveate run --overlay` by the same function."""
    path = outputs.demo_picture(tmp_path, 0, "all")
    path.write_text("theirs")
    assert demo._save(Image.new("RGB", (1, 1)), path, False) == tmp_path / "image-01-all-2.png"
    assert path.read_text() == "theirs"


def test_a_place_for_a_file(tmp_path: Path) -> None:
    there = tmp_path / "report.html"
    there.write_text("mine")
    with pytest.raises(CommandError, match="is there already: give --out another name, or --overwrite to begin anew"):
        outputs.check_new("out", there, overwrite=False)
    outputs.check_new("out", there, overwrite=True)
    outputs.check_new("out", tmp_path / "new" / "other.html", overwrite=False)
    with pytest.raises(CommandError, match="is a folder: name a file"):
        outputs.check_new("out", tmp_path, overwrite=True)
    with pytest.raises(CommandError, match="is a file; give the name of a folder"):
        outputs.check_new("out", there / "report.html", overwrite=False)
    with pytest.raises(CommandError, match="is no name for a file"):
        outputs.check_folder("out", tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux has a folder that takes no files, whoever asks")
@pytest.mark.parametrize("name", [name for name in TAKEN if not name.startswith("the ") and name != "bench"])
def test_a_place_that_takes_nothing(name: str, here: Here, tmp_path: Path) -> None:
    """It is said before the work, also to an administrator, who has the permission."""
    words, _ = TAKEN[name]
    draw(tmp_path / "one.png")
    (tmp_path / "mine.jsonl").write_text('{"image": "one.png", "prompt": "what ?"}\n')
    (tmp_path / "bench.json").write_text("{}")
    started = [f"/proc/{word}" if word.startswith(("out", "page", "mine.md", "answers")) else word for word in words]
    done = here(*started)
    assert done.returncode == 2
    assert "nothing can be written to '/proc'" in done.stderr or "cannot be written" in done.stderr


def test_an_answers_folder_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("mine")
    with pytest.raises(CommandError, match="answers' is a file, where a folder is to be"):
        outputs.check_made(tmp_path, False)
    outputs.check_made(tmp_path, True)


def test_only_what_a_command_writes_is_taken_away(tmp_path: Path) -> None:
    for name in ("answers/a.jsonl", "answers/notes.txt", "results.json", "mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    outputs.clear(tmp_path, ("answers/*.jsonl", "results.json", "accuracy.png"))
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["mine.png", "notes.txt"]


def test_an_evaluation_begins_anew(tmp_path: Path) -> None:
    answers = tmp_path / "answers" / "fastv.jsonl"
    answers.parent.mkdir()
    answers.write_text('{"model": "one"}\n')
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(CommandError, match='is of another run, whose model was "one", and now is "two"'):
        check_folder(answers.parent, {"model": "two"})
    check_folder(answers.parent, {"model": "one"})
    check_folder(answers.parent, {"model": "two"}, overwrite=True)
    assert not answers.exists()
    assert not (tmp_path / "results.json").exists()
