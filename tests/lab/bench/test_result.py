"""The file of a result: what is not whole is refused in a sentence, whoever has edited it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import case, result

from foveate.lab.bench import show
from foveate.lab.bench.request import Request, check
from foveate.lab.bench.result import read
from foveate.lab.terminal import CommandError

Change = Callable[[Any], Any]


def dense(data: Any) -> Any:
    return data["cases"][0]["lines"]["dense"]


def luvc(data: Any) -> Any:
    return data["cases"][0]["lines"]["luvc"]


BROKEN: dict[str, tuple[Change, str]] = {
    "no settings": (lambda data: data.update(settings={}), "'new_tokens' is missing"),
    "settings of another kind": (lambda data: data.update(settings=[1]), "not a whole result"),
    "no stock model": (lambda data: data["cases"][0]["lines"].pop("dense"), "not those of the whole"),
    "a method of nobody": (lambda data: data["settings"]["methods"].pop("luvc"), "not those of the whole"),
    "a time is missing": (lambda data: dense(data)["repeats"][0].pop("first"), "'first' is missing"),
    "no rounds": (lambda data: dense(data).update(repeats=None), "not a whole result"),
    "an empty probe": (lambda data: dense(data).update(probe={}), "'new_tokens' is missing"),
    "no FLOPs": (lambda data: luvc(data)["probe"].pop("flops"), "'flops' is missing"),
    "FLOPs of another kind": (lambda data: luvc(data)["probe"]["flops"].update(tower="x"), "not a whole result"),
    "words for a number": (lambda data: data["cases"][0].update(tokens="x"), "tokens is 'x'"),
    "no number": (lambda data: dense(data)["repeats"][0].update(first=float("nan")), "first is nan"),
    "endless": (lambda data: luvc(data)["probe"].update(tokens=float("inf")), "tokens of luvc is inf"),
    "no time at all": (lambda data: luvc(data)["repeats"][0].update(decode=0), "decode is 0"),
    "a model without a name": (lambda data: data["cases"][0].update(model=[1]), "is no text"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_not_whole(tmp_path: Path, broken: str) -> None:
    data = json.loads(json.dumps(result(case(64, [1.0], [0.5])).to_dict()))
    change, sentence = BROKEN[broken]
    change(data)
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(CommandError, match="is not a whole result of `foveate bench`: ") as said:
        read(tmp_path / "x.json")
    assert sentence in str(said.value)


def test_what_is_whole(tmp_path: Path) -> None:
    for written in (result(), result(case(64, [], [])), result(case(64, [1.0], [0.5]), case(256, [2.0], [0.5]))):
        (tmp_path / "x.json").unlink(missing_ok=True)
        written.write(tmp_path / "x.json")
        assert read(tmp_path / "x.json") == written


def test_a_file_that_another_run_has_written_stays(tmp_path: Path) -> None:
    """Both began before there was a file; a run goes on in its own."""
    ours, theirs, path = result(case(64, [1.0], [0.5])), result(case(256, [2.0], [0.5])), tmp_path / "x.json"
    theirs.write(path)
    with pytest.raises(CommandError, match=r"was written by another run while this one measured.*--overwrite"):
        ours.write(path)
    assert read(path) == theirs
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]
    again = read(path)
    again.cases.append(case(512, [3.0], [0.5]))
    again.write(path)
    assert read(path) == again
    with pytest.raises(CommandError, match="was written by another run"):
        theirs.write(path)


def test_brackets_without_end(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 200_000)
    with pytest.raises(CommandError, match="is not a result of `foveate bench`"):
        read(tmp_path / "x.json")


def test_pictures_and_tables_of_somebody_else(tmp_path: Path) -> None:
    """They are not lost, whether they were there when the run began or came meanwhile; its own are made anew."""
    pytest.importorskip("matplotlib")
    out, plot, table = (tmp_path / name for name in ("bench.json", "a.png", "a.md"))
    measured = result(case(64, [1.0], [0.5]))
    measured.write(out)
    for path in (plot, table):
        path.write_text("theirs")
        with pytest.raises(CommandError, match="is there already"):
            check(replace(Request(out, new_tokens=4), **{"plot" if path is plot else "table": path}))
    beside = [out, tmp_path / "a-2.md", tmp_path / "a-2.png"]
    assert show.write(measured, Request(out, new_tokens=4, plot=plot, table=table)) == beside
    assert [path.read_text() for path in (plot, table)] == ["theirs", "theirs"]
    again = Request(out, new_tokens=4, plot=beside[2], table=beside[1])
    check(again)
    beside[1].write_text("")
    assert show.write(read(out), again) == beside
    assert beside[1].read_text().startswith("**small: 64")
