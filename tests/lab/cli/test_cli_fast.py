"""Lists, and mistakes that need no model: said before torch is imported."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from command import as_json, draw, foveate

from foveate.errors import ConfigError, UnknownNameError
from foveate.lab import catalog, checks, declared, index, words
from foveate.lab.evaluation.request import Reference
from foveate.lab.leaderboard.request import Board
from foveate.methods import list_methods
from foveate.serialise import options_of
from foveate.site import Place

ASK = ["run", "--image", "one.png", "--prompt", "what ?"]
#: Command lines, and what each says.
SAID = {
    "missing image": (["run", "--image", "none.png", "--prompt", "a", "--method", "fastv"], "there is no image"),
    "not an image": (["run", "--image", "text.png", "--prompt", "a", "--method", "fastv"], "is not an image"),
    "empty prompt": (["run", "--image", "one.png", "--prompt", " ", "--method", "fastv"], "the prompt is empty"),
    "method": ([*ASK, "--method", "fstv"], "there is no method 'fstv' (the nearest is 'fastv')"),
    "part of a sum": ([*ASK, "--method", "tome+fastvv"], "(the nearest is 'fastv')"),
    "method in JSON": ([*ASK, "--method-json", '{"method": "tom"}'], "(the nearest is 'tome')"),
    "option": ([*ASK, "--method", "fastv", "--option", "layr=3"], "no option 'layr' (the nearest is 'layer')"),
    "type": ([*ASK, "--method", "fastv", "--option", "layer=two"], "FastV.layer='two': give a whole number"),
    "choice": ([*ASK, "--method", "v2drop", "--option", "positions=skip"], "choose one of 'keep'"),
    "keep": ([*ASK, "--method", "fastv", "--keep", "1.5"], "keep=1.5 is not a ratio"),
    "dtype": ([*ASK, "--method", "fastv", "--dtype", "bfloat"], "(the nearest is 'bfloat16')"),
    "model": ([*ASK, "--method", "fastv", "--model", "./nowhere"], "there is no model folder"),
    "method to list": (["methods", "divprun"], "(the nearest is 'divprune')"),
    "method to serve": (["serve", "reference", "--method", "fstv", "--show"], "(the nearest is 'fastv')"),
    "method to measure": (["eval", "reference", "--method", "oracl"], "(the nearest is 'oracle')"),
    "what a budget counts": (["eval", "reference", "--by", "tokns"], "(the nearest is 'tokens')"),
    "option of one of many": (["bench", "--method", "fastv", "--option", "layr=1"], "(the nearest is 'layer')"),
    "image of a page": (["report", "--image", "none.png", "--prompt", "a"], "there is no image"),
    "search": (["tune", "--method", "fastv", "--search", "dail"], "(the nearest is 'dial')"),
    "option to train": (["train", "adsc", "--out", "x", "--option", "layrs=1"], "(the nearest is 'layers')"),
    "model in place of a method": ([*ASK, "--method", "a/b"], "(a model is given with --model, or -m)"),
    "method in place of a model": ([*ASK, "-M", "fastv", "-m", "fastv"], "it is a method, so say --method fastv"),
    "model that is no name": ([*ASK, "--method", "fastv", "--model", "refrence"], "(the nearest is 'reference')"),
    "address of an image": (
        ["run", "-i", "https://a.org/b.png", "-p", "a", "-M", "fastv"],
        "is an address: save the image",
    ),
    "device": ([*ASK, "--method", "fastv", "--device", "gpu"], "say cuda"),
    "length": ([*ASK, "--method", "fastv", "-n", "0"], "--new-tokens 0: give a whole number, at least 1"),
    "no file of questions": (["run", "-d", "gone.jsonl", "-M", "fastv"], "there is no file 'gone.jsonl'"),
    "an empty file of questions": (["run", "-d", "empty.jsonl", "-M", "fastv"], "has no prompt: write one a line"),
    "questions that are none": (["run", "-d", "bad.jsonl", "-M", "fastv"], "line 1 of 'bad.jsonl': not JSON"),
    "many questions that are none": (
        ["run", "-d", "twelve.jsonl", "-M", "fastv"],
        "12 lines of 'twelve.jsonl' are wrong:\n  line 1: 'gone.png': there is no such file\n  line 3: 'gone.png': there",
    ),
    "no more than ten of them": (["run", "-d", "twelve.jsonl", "-M", "fastv"], "such file\n  and 2 more\n"),
    "questions of a measurement": (
        ["eval", "fidelity", "-M", "fastv", "-d", "some.jsonl"],
        "4 lines of 'some.jsonl' are wrong:\n  line 2: there is no image 'gone.png'\n  line 3: no `prompt`: give the text "
        "that is asked about the image\n  line 4: the prompt is empty: ask something, e.g. 'What is in the image?'\n  line "
        "5: the id '1' is that of line 1, too",
    ),
    "questions of a search": (
        ["tune", "-M", "fastv", "--budget", "0.5", "-d", "some.jsonl"],
        "4 lines of 'some.jsonl'",
    ),
    "chats to train on": (
        ["train", "adsc", "-o", "x", "-d", "chats.jsonl"],
        "2 lines of 'chats.jsonl' are wrong:\n  line 1: there is no image 'gone.png'\n  line 2: no message is the assistant",
    ),
    "attention": (
        [*ASK, "-M", "vtw", "--attn", "flash_atention_2"],
        "(the nearest is 'flash_attention_2'): choose eager, s",
    ),
    "attention of a page": (["report", "--attn", "nosuch"], "--attn 'nosuch': choose eager, sdpa, "),
    "attention of a bench": (["bench", "--attn", "nosuch"], "--attn 'nosuch': choose eager, sdpa, "),
    "attention of a measurement": (["eval", "fidelity", "--attn", "nosuch"], "--attn 'nosuch': choose eager, sdpa, "),
    "attention of a search": (["tune", "-M", "vtw", "--attn", "nosuch"], "--attn 'nosuch': choose eager, sdpa, "),
    "attention of a benchmark": (
        ["eval", "tasks", "-t", "mme", "-M", "vtw", "--attn", "no"],
        "--attn 'no': choose eager",
    ),
    "questions that are no text": (["eval", "fidelity", "-M", "fastv", "-d", "one.png"], "is not text in UTF-8"),
    "broken configuration": ([*ASK, "--method", "fastv", "--model", "model"], "cannot read 'model/config.json'"),
    "scenes": (["demo", "--scenes", "0"], "--scenes 0: choose 1 to 1000"),
    "budget of the demo": (["demo", "--keep", "2"], "keep=2.0 is not a ratio"),
    "image without a question": (["report", "-i", "one.png"], "1 --image and 0 --prompt"),
    "question without an image": (["tune", "-M", "fastv", "--budget", "0.5", "-p", "a"], "--prompt needs --image"),
    "no benchmark method": (["eval", "tasks", "-t", "mme"], "say what to measure: --method NAME"),
    "task": (["eval", "reference", "-t", "colr"], "(the nearest is 'color')"),
    "recipe": (["train", "reference", "-o", "x", "--recipe", "lava"], "(the nearest is 'llava')"),
    "split": (["eval", "reference", "--split", "tset"], "(the nearest is 'test')"),
    "adapter": (["eval", "reference", "--adapter", "nowhere"], "is neither a folder that is there"),
    "shape": (["bench", "--shape", "smal-llava"], "(the nearest is 'small-llava')"),
    "shape as a model": (["bench", "-m", "small-llava"], "so say --shape small-llava"),
    "sizes": (["bench", "--tokens", "0"], "--tokens 0: give a number above 0"),
    "nothing to show": (["bench", "--from", "gone.json"], "there is no result 'gone.json'"),
    "share of many": (["bench", "-M", "fastv", "-k", "2"], "keep=2.0 is not a ratio"),
    "data to train on": (["train", "adsc", "-o", "x", "-d", "gone.jsonl"], "there is no file 'gone.jsonl'"),
    "share without a method": (["bench", "-k", "3"], "keep=3.0 is not a ratio"),
    "share of a page": (["report", "-k", "3"], "keep=3.0 is not a ratio"),
    "device of a bench": (["bench", "--device", "foo"], "--device 'foo': say cuda"),
    "device without clocks": (["bench", "--device", "mps"], "measured on cpu and cuda only"),
    "result of another bench": (
        ["bench", "-o", "bench.json", "--seed", "3"],
        "another run, whose seed was 0, and now is 3",
    ),
    "result of other methods": (
        ["bench", "-o", "bench.json", "-M", "vtw"],
        'whose methods was ["fastv"], and now is ["vtw"]',
    ),
    "an image for a result": (
        ["bench", "-o", "one.png"],
        "is not a result of `foveate bench`: it is not text in UTF-8",
    ),
    "type to inspect": (["families", "--inspect", "lava"], "has no model type 'lava' (the nearest is 'llava')"),
    "folder to inspect": (
        ["families", "--inspect", "/no/such/path"],
        "there is no file or folder '/no/such/path': give",
    ),
    "file to inspect": (["families", "--inspect", "config.json"], "there is no file or folder 'config.json': give one"),
    "a picture that is there": (
        [*ASK, "-M", "vtw", "--overlay", "."],
        "'01-one-vtw.png' is there already: give --overlay",
    ),
    "frames of an image": (
        [*ASK, "-M", "vtw", "--frames", "4"],
        "--frames is for a file of questions, --data: leave it",
    ),
    "rows of a question": ([*ASK, "-M", "vtw", "-b", "4"], "--batch-size is for a file of questions, --data: leave it"),
    "stock model of a file": (["run", "-d", "bad.jsonl", "-M", "vtw", "--no-compare"], "--compare is for one question"),
    "scenes beside images": (["report", "-i", "one.png", "-p", "a", "--scenes", "2"], "--scenes is for drawn scenes"),
    "scenes twice": (["demo", "--quick", "--scenes", "3"], "--scenes is what --quick says, too: leave it out"),
    "arguments of an engine": ([*ASK, "-M", "vtw", "--engine-args", "x"], "--engine-args are for a file of questions"),
    "tasks beside own data": (
        ["eval", "fidelity", "-M", "vtw", "-i", "one.png", "-p", "a", "-t", "color", "--per-task", "3"],
        "--task and --per-task are for the benchmark's questions",
    ),
    "place": (["methods", "--site", "towr"], "(the nearest is 'tower')"),
    "what is there": (["report", "-o", "text.png"], "'text.png' is there already"),
    "endless name of a folder": (
        ["eval", "tasks", "-t", "mme", "-M", "fastv", "--include-path", "x" * 300],
        "so long a name",
    ),
    "endless name of a page": (["report", "-o", "x" * 300], "is no name for a file"),
    "a page over an image": (
        ["report", "-i", "one.png", "-p", "a", "-o", "one.png", "--overwrite"],
        "is named as images are: give a name such as report.html",
    ),
    "answers over an image": (
        ["run", "-d", "bad.jsonl", "-M", "vtw", "-o", "one.png", "--overwrite"],
        "is named as images are: give a name such as answers.jsonl",
    ),
    "a method and an image": (
        ["run", "-i", "none.png", "-p", "a", "-M", "fstv", "--dtype", "int8"],
        "(the nearest is 'fastv'); `foveate methods` lists all\nalso: --dtype 'int8': choose auto, float32, bfloat16, float16\n"
        "also: there is no image 'none.png'",
    ),
    "a task and a budget": (
        ["eval", "reference", "-t", "colr", "--budget", "2"],
        "above 0 and up to 1\nalso: --task 'colr'",
    ),
    "a shape and a size": (
        ["bench", "--shape", "x", "--tokens", "0", "-M", "fstv"],
        "\nalso: --tokens 0: give a number",
    ),
    "an image alone": (
        ["run", "photo.JPG", "What is", "it?", "-M", "fastv"],
        "say --image photo.JPG --prompt 'What is' ",
    ),
    "words behind an image": (
        ["run", "photo.jpg", "what", "now", "-M", "vtw"],
        "say --image photo.jpg --prompt 'what now' (",
    ),
    "an image of a page alone": (["report", "a b.png"], "'a b.png' belongs to no option: say --image 'a b.png' (see `"),
    "questions alone": (["run", "mine.jsonl", "-M", "vtw"], "'mine.jsonl' belongs to no option: say --data mine.jsonl"),
    "a method alone": (
        ["eval", "reference", "tome+fastv"],
        "'tome+fastv' belongs to no option: say --method tome+fastv",
    ),
    "a model alone": (["tune", "reference"], "'reference' belongs to no option: say --model reference"),
    "a type alone": (["families", "aya_vision"], "'aya_vision' belongs to no option: say --inspect aya_vision"),
    "no model to serve": (["serve", "-M", "luvc"], "say which model"),
    "command": (["metods"], "methods"),
    "methods": (["methods"], ""),
    "one method": (["methods", "fastv"], ""),
    "families": (["families", "--json"], ""),
}

ALL = """
import contextlib, io, json, sys
from foveate.lab.cli import main
found = {}
for name, argv in json.load(sys.stdin).items():
    sys.argv, said = ["foveate", *argv], io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    found[name] = [said.getvalue(), sorted({"torch", "transformers"} & set(sys.modules))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every command line of `SAID` says on stderr, one after another in one process, and what was imported by then."""
    folder = tmp_path_factory.mktemp("here")
    draw(folder / "one.png")
    (folder / "text.png").write_text("not an image")
    (folder / "empty.jsonl").write_text("")
    (folder / "bad.jsonl").write_text('{"image":\n')
    gone, one = '{"image": "gone.png", "prompt": "a"}\n', '{"image": "one.png", "prompt": "a"}\n'
    (folder / "twelve.jsonl").write_text(gone + "\n" + 11 * gone)
    wrong = '{"image": "one.png"}\n{"image": "one.png", "prompt": " "}\n{"image": "one.png", "prompt": "a", "id": 1}\n'
    (folder / "some.jsonl").write_text(one + gone + wrong + one)
    user, answer = '{"role": "user", "content": "<image>a"}', '{"role": "assistant", "content": "b"}'
    chats = [
        f'{{"images": ["{name}.png"], "messages": [{said}]}}\n'
        for name, said in (("gone", f"{user}, {answer}"), ("one", user))
    ]
    (folder / "chats.jsonl").write_text("".join(chats))
    (folder / "01-one-vtw.png").write_text("")
    settings = {
        "methods": {"dense": None, "fastv": {"method": "fastv"}},
        "new_tokens": 16,
        "seed": 0,
        "dtype": "auto",
        "attn": None,
    }
    (folder / "bench.json").write_text(json.dumps({"schema": 1, "settings": settings}))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{")
    lines = json.dumps({name: argv for name, (argv, _) in SAID.items()})
    sources = os.pathsep.join(path for path in sys.path if path)
    env = os.environ | {"COLUMNS": "300", "PYTHONPATH": sources}
    command = [sys.executable, "-c", ALL]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=folder, env=env, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", SAID)
def test_before_torch(name: str, said: dict[str, Any]) -> None:
    text, heavy = said[name]
    assert SAID[name][1] in text
    assert not heavy


@pytest.mark.parametrize("command", ["methods", "families"])
def test_lists_take_a_moment(command: str) -> None:
    """Ten times what the command line's own library takes, in processor time, the best of several; torch takes thirty."""

    def used(run: Callable[[], object]) -> float:
        before = os.times()
        run()
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    bare = min(used(lambda: subprocess.run([sys.executable, "-c", "import typer"], check=True)) for _ in range(3))
    assert min(used(lambda: as_json(foveate(command, "--json"))) for _ in range(3)) < 10 * bare


def test_the_index_is_what_the_classes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "entry_points", lambda group: ())
    assert index.methods() == declared.methods(), "run: python tools/pages/lists.py"
    assert index.families() == declared.families()
    for facts in declared.methods():
        stand_in, cls = index.options(facts), list_methods()[facts["name"]]
        assert {name: hint for name, (hint, _) in options_of(stand_in).items()} == {
            name: hint for name, (hint, _) in options_of(cls).items()
        }
        assert set(facts["places"]) <= set(get_args(Place))


def test_an_index_of_other_files_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that was edited, or added, in a checkout is asked itself."""
    (tmp_path / "methods").mkdir()
    for path in (index.PACKAGE / "methods").glob("*.py"):
        (tmp_path / "methods" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(index, "PACKAGE", tmp_path)
    read = index._indexed.__wrapped__
    assert read("methods") is not None
    (tmp_path / "methods" / "mine.py").write_text("")
    assert read("methods") is None
    (tmp_path / "methods" / "mine.py").unlink()
    (tmp_path / "methods" / "fastv.py").write_text("# edited\n")
    assert read("methods") is None


def test_methods_of_other_packages_are_checked_by_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "entry_points", lambda group: ("one",))
    assert index.methods() is None
    with pytest.raises(UnknownNameError, match="the nearest is 'fastv'"):
        words.check_one("fstv", None, [], None)
    with pytest.raises(ConfigError, match="the nearest is 'layer'"):
        words.check_one("fastv", None, ["layr=1"], None)


def test_what_a_plan_says_before_it_loads_anything() -> None:
    request = Reference(methods=("luvc",), budgets=(0.5,), tasks=("color",), seeds=(0, 1))
    assert request.says() == (
        "200 questions (100 of one task and 2 seeds) to luvc, at 0.5 of visual tokens per decoder layer, and to the stock model"
    )
    first, second = Board().says().splitlines()
    assert first.startswith("first round: 200 questions (10 of each of 20 tasks) to all methods that fit, the controls")
    assert second.startswith(
        "second round: 400 questions (20 of each of 20 tasks) more to the best 8 and the controls; then"
    )
    shares = ", ".join(f"{share:g}" for share in checks.BUDGETS["flops"])
    assert f"at {shares} of FLOPs of the whole call" in Reference(by="flops").says()


def test_names_of_the_reference_models() -> None:
    import foveate_reference as reference
    from foveate_reference.train import RECIPES

    assert set(checks.REFERENCES.values()) == set(reference.MODELS)
    assert {f"reference-{name}" for name in reference.MODELS} <= set(checks.REFERENCES)
    assert (checks.ADAPTER, checks.SMOLLM2) == (reference.language.ADAPTER, reference.language.NAME)
    assert checks.TASKS == reference.TASKS
    assert (*RECIPES, checks.SMOLLM2) == checks.RECIPES


def test_names_of_places() -> None:
    assert set(catalog.WHERE) == set(get_args(Place))


def test_names_of_attention() -> None:
    from transformers.modeling_utils import AttentionInterface

    assert {*re.findall(r'"(\w+)": ', inspect.getsource(AttentionInterface)), "eager"} == set(checks.ATTENTIONS)


@pytest.mark.parametrize("name", ["sdpa", "paged|sdpa", "kernels-community/flash-attn2", None])
def test_attention_that_may_be_there(name: str | None) -> None:
    checks.check_attn(name)


def test_a_type_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "aya_vision"}')
    for name in ("aya_vision", str(tmp_path), str(tmp_path / "config.json")):
        said = catalog.is_known(checks.type_of(name))
        assert said.startswith("foveate has the type 'aya_vision' already (Aya Vision), ")
    (tmp_path / "config.json").write_text("[")
    for name in ("mllama", str(tmp_path)):
        assert not catalog.is_known(checks.type_of(name))


def test_names_of_shapes() -> None:
    from foveate.lab.bench import shapes

    assert tuple(shapes.SHAPES) == checks.SHAPES
