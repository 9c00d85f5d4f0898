"""Mistakes: one sentence on stderr, exit code 2, nothing on stdout, no traceback.

Most are tried by calling the entry point in this process; a few go the whole way.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from command import Here, draw, foveate, needs_weights

ASK = ("run", "--image", "one.png", "--prompt", "color of circle ?")
ADSC = ("train", "adsc", "--out", "new")
FASTV = (*ASK, "--method", "fastv")


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, and things that are not."""
    made = tmp_path_factory.mktemp("things")
    draw(made / "one.png")
    draw(made / "wide.png", size=(3000, 10))
    (made / "text.png").write_text("not an image")
    (made / "cut.png").write_bytes((made / "one.png").read_bytes()[:3000])
    (made / "empty").mkdir()
    (made / "gpt2").mkdir()
    (made / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (made / "file").write_text("here first")
    (made / "deep.json").write_text("[" * 3000 + "]" * 3000)
    return made


@pytest.fixture
def folder(things: Path, tmp_path: Path) -> Path:
    """Where the commands run: a copy of these."""
    return Path(shutil.copytree(things, tmp_path, dirs_exist_ok=True))


MISTAKES = {
    "no such place": (
        ("methods", "--site", "block"),
        "no such place; there are pixels, tower, tower_output, ",
    ),
    "a search that finds nothing": (
        ("methods", "--site", "decode", "--search", "no-hit"),
        "and --search 'no-hit'; `foveate",
    ),
    "a name and a search": (("methods", "fastv", "--search", "fast"), "give the name 'fastv', or --site and --search"),
    "no method": (ASK, "--method NAME"),
    "two methods": ((*FASTV, "--method-json", '{"method": "vtw"}'), "leave one of the two out"),
    "a method and another": ((*FASTV, "--method", "luvc"), "--method is given 2 times, and takes one: a sum, such as"),
    "a word for a number": ((*FASTV, "--keep", "half"), "--keep 'half': give a number, such as 0.5"),
    "JSON in a folder": ((*ASK, "--method-json", "empty"), "'empty' is a folder: give the JSON file in it"),
    "questions in a folder": (("run", "--data", "empty", "--method", "vtw"), "'empty' is a folder: give the file of"),
    "option of no part of a sum": (
        (*ASK, "--method", "tome+fastv", "--option", "curve=4"),
        "no method of the sum has an option 'curve'",
    ),
    "option of two parts of a sum": (
        (*ASK, "--method", "vtw+fastv", "--option", "layer=4"),
        "could belong to vtw or fastv: name one, e.g. --option vtw.layer=",
    ),
    "unknown method": (
        (*ASK, "--method", "fastvv"),
        "'fastvv' (the nearest is 'fastv'); `foveate methods` lists all",
    ),
    "options in the name of a method": ((*ASK, "--method", "fastv:layer=3"), "as in --method fastv --option layer=3"),
    "half a sum": ((*ASK, "--method", "tome+"), "a sum has one on both sides of every +"),
    "keep over one": ((*FASTV, "--keep", "1.5"), "keep=1.5 is not a ratio"),
    "keep that no number is": (
        (*FASTV, "--keep", "1" * 5000),
        "FastV.keep=inf: give a finite number, such as 0.5",
    ),
    "layer of thousands of digits": (
        (*FASTV, "--option", f"layer={'1' * 5000}"),
        "characters): give a whole number, such as 3",
    ),
    "a number too large in JSON": ((*ASK, "--method-json", '{"method": "fastv", "keep": 1e999}'), "1e999 is too large"),
    "JSON that is nested deeply": ((*ASK, "--method-json", "deep.json"), "nested too deeply"),
    "a result that is nested deeply": (("report", "--results", "deep.json"), "nested too deeply"),
    "a measurement that is nested deeply": (("report", "--bench", "deep.json"), "nested too deeply"),
    "config that is nested deeply": (
        ("serve", "reference", "--method", "fastv", "--show", "--additional-config", "[" * 3000),
        "nested too deeply",
    ),
    "unknown option": ((*FASTV, "--option", "ration=0.5"), "it has positions, keep, layer, ratio"),
    "option without value": ((*FASTV, "--option", "layer"), "is not name=value"),
    "option of the wrong type": (
        (*FASTV, "--option", "layer=two"),
        "FastV.layer='two': give a whole number, such as 3",
    ),
    "a fraction for a whole number": ((*FASTV, "--option", "layer=2.5"), "FastV.layer=2.5: give a whole number"),
    "one number for several": (
        (*ASK, "--method", "sparsevlm", "--option", "layers=x"),
        "SparseVLM.layers='x': give whole numbers, such as [3]",
    ),
    "no word of a schedule": (
        (*FASTV, "--option", "schedule=erly"),
        "='erly': give early, halving or linear or a list of [a whole number, a number], such as [[3, 0.5]]",
    ),
    "a word for a whole number": ((*FASTV, "--new-tokens", "1.5"), "--new-tokens '1.5': give a whole number, such as"),
    "an option that is none": ((*FASTV, "--kep", "0.5"), "there is no option --kep (the nearest is '--keep') (see `"),
    "an option without its value": ((*FASTV, "--keep"), "--keep needs a value after it"),
    "a switch with a value": ((*FASTV, "--overwrite=3"), "--overwrite takes no value"),
    "a prompt without quotes": (("run", "--prompt", "what", "is", "it"), "'is it' belongs to no option: put what has"),
    "an option that must be there": (("train", "adsc"), "--out is missing: folder for what is trained"),
    "an option before its command": (("eval", "--method", "vtw"), "options come after one of reference, tasks, "),
    "a command that is none": (("rnu",), "there is no command 'rnu' (the nearest is 'run'); there are demo, run, "),
    "a command of several that is none": (("eval", "refrence"), "(the nearest is 'reference'); there are reference, "),
    "option of a method that is not in the sum": (
        (*ASK, "--method", "tome+fastv", "--option", "fasty.layer=4"),
        "there is no method 'fasty' in the sum (the nearest is 'fastv')",
    ),
    "keep twice": ((*FASTV, "--keep", "0.5", "--option", "keep=0.4"), "keep is given twice"),
    "keep and a ratio": ((*FASTV, "--keep", "0.5", "--option", "ratio=0.4"), "both say how much stays"),
    "keep out of reach": ((*FASTV, "--keep", "0.01", "--option", "layer=4"), "is the least here"),
    "keep of a sum that counts no tokens": (
        (*ASK, "--method", "ipcv+ipcv", "--keep", "0.5"),
        "no part of the sum counts",
    ),
    "JSON that is none": (
        (*ASK, "--method-json", "{fastv}"),
        'in double quotes: column 2; write it as {"method": "fastv", "layer": 3}',
    ),
    "JSON of the wrong type": (
        (*ASK, "--method-json", '{"method": "vtw", "layer": "2"}'),
        "VTW.layer='2': give a whole",
    ),
    "JSON file that is missing": ((*ASK, "--method-json", "fastv.json"), "neither a file nor a JSON object"),
    "JSON with an unknown key": ((*ASK, "--method-json", '{"method": "vtw", "x": 1}'), "VTW has no option 'x'"),
    "empty prompt": (("run", "--image", "one.png", "--prompt", " ", "--method", "vtw"), "the prompt is empty"),
    "missing image": ((*FASTV, "--image", "[none].png"), "there is no image '[none].png'"),
    "not an image": ((*FASTV, "--image", "text.png"), "'text.png' is not an image"),
    "half an image": ((*FASTV, "--image", "cut.png"), "cannot read the image 'cut.png'"),
    "a folder as image": ((*FASTV, "--image", "empty"), "'empty' is a folder"),
    "unknown dtype": ((*FASTV, "--dtype", "int8"), "choose auto, float32"),
    "unknown device": ((*FASTV, "--device", "abacus"), "--device 'abacus': say cuda"),
    "endless model name": ((*FASTV, "--model", "x" * 400), "no folder and no model has so long a name"),
    "missing model folder": ((*FASTV, "--model", "./nowhere"), "there is no model folder './nowhere'"),
    "a folder without a model": ((*FASTV, "--model", "empty"), "has no config.json"),
    "unknown model": ((*FASTV, "--model", "nobody/nothing"), "cannot load the model 'nobody/nothing'"),
    "unknown family": (
        (*FASTV, "--model", "gpt2"),
        "a 'gpt2' model has no vision part (its config has no vision_config)",
    ),
    "unknown method to list": (("methods", "nope"), "there is no method 'nope'"),
    "a folder of something else": (("train", "reference", "--out", "gpt2"), "'gpt2' is there already: give --out"),
    "unknown training option": (("train", "reference", "--out", "x", "--set", "steps=1"), "has no option 'steps'"),
    "unknown option of a recipe": (
        ("train", "adsc", "--out", "x", "--set", "ranks=4"),
        "Recipe has no option 'ranks'",
    ),
    "recipe out of range": (
        ("train", "adsc", "--out", "x", "--set", "rank=0"),
        "Recipe.rank=0: give a number above 0",
    ),
    "option of ADSC": (("train", "adsc", "--out", "x", "--option", "stride=2"), "ADSC has no option 'stride'"),
    "ratio to train for": (("train", "adsc", "--out", "x", "--keep", "3"), "keep=3.0 is not a ratio"),
}
WITH_WEIGHTS = {
    "unknown curriculum": ((*ADSC, "--curriculum", "harder"), "choose hard-to-easy, easy-to-hard, constant"),
    "folder of another run": (
        ("train", "adsc", "--out", "gpt2"),
        "'gpt2' is there already: give --out another name, or --overwrite",
    ),
    "layer out of range": ((*FASTV, "--option", "layer=99"), "the model has 10 decoder layers, 0 to 9"),
    "an image too wide for the model": ((*FASTV, "--image", "wide.png"), "refuses the input: absolute aspect ratio"),
    "overlay folder is a file": ((*FASTV, "--overlay", "file"), "--overlay 'file': 'file' is a file"),
    "demo folder is a file": (("demo", "--quick", "--out", "file"), "'file' is a file"),
    "demo without images": (("demo", "--scenes", "0"), "choose 1 to"),
    "demo with a seed that has no scenes": (("demo", "--seed", "-1"), "--seed -1"),
    "demo with a budget that not all can meet": (("demo", "--keep", "0.1"), "cannot hold that share"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.usefixtures("folder")
def test_one_sentence(name: str, here: Here) -> None:
    words, sentence = MISTAKES[name]
    check(here(*words), sentence)


@needs_weights
@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.usefixtures("folder")
def test_one_sentence_with_a_model(name: str, here: Here) -> None:
    words, sentence = WITH_WEIGHTS[name]
    check(here(*words), sentence)


@pytest.mark.parametrize("name", ["unknown method", "missing image"])
def test_the_whole_way(name: str, folder: Path) -> None:
    words, sentence = MISTAKES[name]
    check(foveate(*words, "--json", cwd=folder), sentence)


def test_missing_words_are_a_usage_error() -> None:
    done = foveate("run", "--prompt", "what ?")
    assert done.returncode == 2
    assert "--image" in done.stderr


def check(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    start, error, said = done.stderr.rpartition("Error: ")
    assert error
    assert not start or start.endswith("\n")
    assert all(line.startswith("also: ") for line in said.strip().splitlines()[1:])  # of several mistakes
    assert sentence in said
