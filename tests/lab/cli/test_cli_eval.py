"""``foveate eval``: runs, and what a person may get wrong."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import tiny
from command import Here, as_json, needs_weights

import foveate_reference as reference
from foveate.lab.evaluation.request import Fidelity
from foveate.lab.typed import command, request

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is missing")
SHORT = ("--task", "color", "--per-task", "2", "--budget", "0.25", "--method", "stride", "--method", "oracle")


@needs_weights
@needs_matplotlib
def test_json(here: Here, tmp_path: Path) -> None:
    found = as_json(here("eval", "reference", *SHORT, "--json", "--out", "out"))
    rows = {row["label"]: row for row in found["rows"]}
    assert set(rows) == {"dense", "stride", "oracle"}
    assert rows["dense"]["spent"] == {"tokens": 1.0, "flops": 1.0, "kv": 1.0}
    assert rows["stride"]["spent"]["tokens"] == pytest.approx(0.25)
    assert rows["stride"]["budget"] == 0.25
    assert found["questions"] == 2
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "| stride | 0.25 |" in (tmp_path / "out" / "results.md").read_text()


@needs_weights
@needs_matplotlib
def test_a_table_for_a_person_and_a_second_budget(here: Here, tmp_path: Path) -> None:
    assert here("eval", "reference", *SHORT, "--out", "out").returncode == 0
    first = {path: path.read_bytes() for path in (tmp_path / "out" / "answers").iterdir()}
    done = here("eval", "reference", *SHORT, "--budget", "0.5", "--by", "tokens", "--out", "out")
    assert done.returncode == 0, done.stderr
    for part in ("2 questions, 1 task, seeds 0", "Guessing at random: 12.5%", "stride", "0.5", "written: "):
        assert part in done.stdout
    assert all(path.read_bytes() == content for path, content in first.items()), "what was answered stays"
    assert len(list((tmp_path / "out" / "answers").iterdir())) == len(first) + 2


MISTAKES = {
    "unknown task": (("--task", "colour"), "--task 'colour' (the nearest is 'color'): choose color, shape"),
    "seed out of range": (("--seed", "0", "--seed", "99"), "seed 99"),
    "negative seed": (("--seed", "-1"), "seed -1"),
    "unknown split": (("--split", "dev"), "'dev'"),
    "no questions": (("--per-task", "0"), "--per-task 0: give a whole number"),
    "too many questions": (("--per-task", "1000000"), "1000000 questions per task"),
    "unknown method": (("--method", "fastvv"), "there is no method 'fastvv'"),
    "method that does nothing here": (
        ("--method", "dycoke", "--option", "ratio=1.0"),
        "dycoke acts on the tokens that follow",
    ),
    "unknown option": (("--method", "fastv", "--option", "layr=3"), "FastV has no option 'layr'"),
    "option of nobody": (("--method", "fastv", "--method", "tome", "--option", "layer=3"), "belongs to no method"),
    "layer out of range": (("--method", "fastv", "--option", "layer=40"), "there is no decoder layer 40"),
    "bad JSON": (("--method-json", "{fastv}"), "not JSON"),
    "budget of nothing": (("--budget", "0"), "--budget 0.0: give a share"),
    "budget over one": (("--budget", "1.5"), "--budget 1.5: give a share"),
    "budget that is no number": (("--budget", "nan"), "--budget nan: give a share"),
    "budget twice": (("--budget", "0.5", "--budget", "0.5"), "--budget 0.5 is given twice"),
    "method twice": (("--method", "tome", "--method", "tome"), "--method tome is given twice"),
    "option twice": (
        ("--method", "vtw", "--option", "layer=4", "--option", "layer=5"),
        "--option layer is given twice",
    ),
    "budget and none": (("--as-is", "--budget", "0.5"), "--as-is takes methods as their options say"),
    "unknown cost": (("--by", "seconds"), "choose tokens, flops, kv"),
    "unknown positions": (("--positions", "native"), "choose keep, renumber"),
    "missing folder": (("--model", "nowhere"), "there is no model folder 'nowhere'"),
    "folder without a model": (("--model", "empty"), "the folder 'empty' has no config.json"),
    "an adapter that is missing": (("--adapter", "./none"), "neither a method, nor a folder with a trained one"),
    "a folder without an adapter": (("--adapter", "empty"), "has no foveate_method.json"),
    "out is a file": (SHORT, "'file' is a file; give the name of a folder"),
}


@needs_weights
@needs_matplotlib
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(here: Here, tmp_path: Path, mistake: str) -> None:
    (tmp_path / "file").write_text("here first")
    (tmp_path / "empty").mkdir()
    words, sentence = MISTAKES[mistake]
    out = "file" if mistake == "out is a file" else "out"
    done = here("eval", "reference", "--out", out, *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists(), "nothing has begun"


@needs_weights
def test_matplotlib_is_missing(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    words = (
        "eval",
        "reference",
        "--method",
        "stride",
        "--budget",
        "0.5",
        "--task",
        "color",
        "--per-task",
        "1",
        "--out",
        "out",
    )
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert "stride" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("no picture was drawn, which needs matplotlib: `pip install")
    assert (tmp_path / "out" / "results.json").is_file()
    assert not (tmp_path / "out" / "accuracy.png").exists()


@needs_matplotlib
def test_lmms_eval_is_missing(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lmms_eval" else find(name))
    done = here("eval", "tasks", "--task", "mme", "--method", "fastv", "--out", "out")
    assert done.returncode == 2
    assert "a public benchmark needs lmms_eval, which is not installed: `pip install 'lmms-eval" in done.stderr
    assert not (tmp_path / "out").exists()


@needs_weights
@needs_matplotlib
def test_a_model_of_another_vocabulary(here: Here, tmp_path: Path) -> None:
    processor = tiny.processor("llava")
    processor.chat_template = processor.tokenizer.chat_template = "{{ messages[0].content[-1].text }}"
    processor.save_pretrained(tmp_path / "tiny")
    tiny.model("llava").save_pretrained(tmp_path / "tiny")
    done = here("eval", "reference", "--model", "tiny")
    assert done.returncode == 2
    assert "has no token of its own for" in done.stderr
    assert "foveate train reference" in done.stderr


@needs_weights
@needs_matplotlib
def test_a_model_of_another_patch_size(here: Here, tmp_path: Path) -> None:
    """A processor that shrinks images does not fit: the evidence would be of other tokens."""
    shutil.copytree(reference.PATHS["llava"], tmp_path / "small")
    config, processor = tmp_path / "small" / "config.json", tmp_path / "small" / "processor_config.json"
    data = json.loads(processor.read_text())
    data["patch_size"] = 32
    processor.write_text(json.dumps(data))
    assert config.is_file()
    done = here("eval", "reference", "--model", "small")
    assert done.returncode == 2
    assert "visual tokens of 1 image(s) of 160 x 160 px; the benchmark needs 100" in done.stderr


def test_the_kinds_and_their_options(here: Here) -> None:
    """Without a subcommand it says which there are; an option of another kind is none."""
    done = here("eval")
    assert all(kind in done.stdout + done.stderr for kind in ("reference", "tasks", "fidelity"))
    for words in (("reference", "--max-kl", "3"), ("tasks", "--seed", "1"), ("fidelity", "--limit", "3")):
        done = here("eval", *words)
        assert done.returncode == 2
        assert f"there is no option {words[1]}" in done.stderr
    done = here("eval", "tasks", "--method", "stride")
    assert (done.returncode, "say which benchmarks: --task mme" in done.stderr) == (2, True)


def test_a_command_says_all_of_a_request() -> None:
    """What is usual needs no words, and the words make the request again."""
    asked = Fidelity(methods=("a+b",), images=(Path("x y.png"),), budgets=(0.5, 0.25), as_is=True, samples=3)
    words = command("foveate eval fidelity", asked)
    assert words == (
        "foveate eval fidelity --method a+b --budget 0.5 --budget 0.25 --as-is --image 'x y.png' --samples 3"
    )
    assert request(Fidelity, words) == asked
