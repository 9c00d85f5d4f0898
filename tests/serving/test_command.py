"""`foveate serve` is `vllm serve` with one more option."""

from __future__ import annotations

import json
import shlex

import pytest
from typer.testing import CliRunner

from foveate import ADSC, IPCV, LUVC, method_from_dict
from foveate.lab.cli import app
from foveate.lab.serve import words
from foveate.lab.terminal import CommandError


def test_words() -> None:
    made = words("org/model", LUVC(ratio=0.4), ["--port", "8001"])
    assert made[:-1] == ["serve", "org/model", "--port", "8001", "--additional-config"]
    assert method_from_dict(json.loads(made[-1])["foveate"]) == LUVC(ratio=0.4)


@pytest.mark.parametrize("rest", [["--additional-config", '{"a": 1}'], ['--additional-config={"a": 1}']])
def test_other_config_is_kept(rest: list[str]) -> None:
    *others, config = words("m", LUVC(), ["--x", *rest, "--y"])
    assert others == ["serve", "m", "--x", "--y", "--additional-config"]
    assert set(json.loads(config)) == {"a", "foveate"}


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (["--additional-config"], "wants a JSON object"),
        (["--additional-config", "{a}"], "not JSON"),
        (["--additional-config", "[1]"], "is not a JSON object"),
        (["--additional-config", '{"foveate": {}}'], 'has "foveate" already'),
    ],
)
def test_mistakes(rest: list[str], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        words("m", LUVC(), rest)


def test_show() -> None:
    asked = ["--method", "ipcv+adsc", "--option", "adsc.keep=0.4", "--tensor-parallel-size", "2", "--show"]
    for call in (
        ["serve", "mine/m", *asked],
        ["serve", *asked, "--model", "mine/m"],
        ["serve", "mine/m", "-M", "ipcv+adsc", *asked[2:]],
    ):
        shown = shlex.split(CliRunner().invoke(app, call).stdout)
        assert shown[:5] == ["vllm", "serve", "mine/m", "--tensor-parallel-size", "2"]
        assert method_from_dict(json.loads(shown[-1])["foveate"]) == IPCV() + ADSC(keep=0.4)


def test_letters_of_vllm_are_left_to_it() -> None:
    letters = ["-tp", "2", "-dpm", "external_lb", "-O3", "-n", "2"]
    shown = shlex.split(
        CliRunner().invoke(app, ["serve", "mine/m", "-M", "luvc", "-k", "0.5", *letters, "--show"]).stdout
    )
    assert shown[: 3 + len(letters)] == ["vllm", "serve", "mine/m", *letters]
    asked = ["serve", "mine/m", "--method", "luvc", "--limit", "0.8", "--show"]
    shown = shlex.split(CliRunner().invoke(app, asked).stdout)
    assert json.loads(shown[-1])["foveate"]["limit"] == 0.8
