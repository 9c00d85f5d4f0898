"""One word for one thing in all commands: options, letters, parts of ``--help``, examples, and the tab key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from foveate.lab.cli import app
from foveate.lab.cli.training import trainable

#: The only letters there are.
SHORT = {
    "-m": "--model",
    "-M": "--method",
    "-k": "--keep",
    "-i": "--image",
    "-p": "--prompt",
    "-d": "--data",
    "-t": "--task",
    "-n": "--new-tokens",
    "-b": "--batch-size",
    "-o": "--out",
}
#: Words for what has another word now.
GONE = {"--max-new-tokens", "--batch", "--images", "--method-option", "--resume", "--reference", "--tasks"}
#: `foveate serve` hands letters to vLLM, which has some of its own.
FEW = {"serve": {"-M", "-k"}}


def commands(group: Any, name: str = "") -> dict[str, Any]:
    """Every command by its words."""
    found = {}
    for word, command in group.commands.items():
        whole = f"{name} {word}".strip()
        found |= commands(command, whole) if hasattr(command, "commands") else {whole: command}
    return found


COMMANDS = commands(typer.main.get_command(app))
WRITE = (
    "demo",
    "run",
    "report",
    "bench",
    "tune",
    "eval reference",
    "eval tasks",
    "eval fidelity",
    "leaderboard",
    "train reference",
    *(f"train {name}" for name in trainable()),
)


@pytest.mark.parametrize("name", COMMANDS)
def test_words_and_letters(name: str) -> None:
    used = {word for option in COMMANDS[name].params for word in (*option.opts, *option.secondary_opts)}
    assert not used & GONE
    letters = {word for word in used if re.fullmatch("-.", word)}
    assert letters <= set(SHORT)
    for option in COMMANDS[name].params:
        short = {SHORT[word] for word in option.opts if word in letters}
        assert short <= set(option.opts), "a letter stands for its word"
    expected = {letter for letter, word in SHORT.items() if word in used}
    assert letters == FEW.get(name, expected)
    assert ("--overwrite" in used) == (name in WRITE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str) -> None:
    """Every option says what it does; commands with many sort them; all but one show how they are called."""
    command = COMMANDS[name]
    assert all(option.help for option in command.params)
    if len(command.params) > 6:
        assert all(option.rich_help_panel for option in command.params if option.name != "help")
    if name != "families":
        assert f"$ foveate {name}" in command.epilog


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "families"])
def test_examples_can_be_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example is understood: what it asks for may be missing, its options are not."""
    import shlex

    for line in re.findall(r"\$ foveate (.*)", COMMANDS[name].epilog):
        words = shlex.split(line)[len(name.split()) :]
        COMMANDS[name].make_context(name, words)


@pytest.mark.parametrize(
    ("typed", "offered"),
    {
        "foveate eval ": {"reference", "tasks", "fidelity"},
        "foveate run --new": {"--new-tokens"},
        "foveate run --method div": {"divprune"},
        "foveate run -M tome+v2d": {"tome+v2drop"},
        "foveate methods visionz": {"visionzip"},
        "foveate run -m reference-l": {"reference-llava"},
        "foveate bench --dtype bf": {"bfloat16"},
        "foveate bench --shape llava": {"llava-1.5-7b"},
        "foveate eval reference --by f": {"flops"},
        "foveate methods --site tower_": {"tower_output"},
        "foveate eval reference -t co": {"color", "count"},
        "foveate eval fidelity --split t": {"test", "train"},
        "foveate eval reference --method anti": {"antioracle"},
        "foveate eval tasks --positions r": {"renumber"},
        "foveate tune --search d": {"dial"},
        "foveate tune -M fastv --option la": {"layer="},
        "foveate run -M ipcv+adsc --option ipcv.ch": {"ipcv.changed=most", "ipcv.changed=least"},
        "foveate train adsc --option pattern=c": {"pattern=checker"},
        "foveate train adsc --set l": {"lr="},
        "foveate train adsc --curriculum c": {"constant"},
        "foveate train reference --recipe s": {"smollm2"},
        "foveate serve reference --profile fast=lu": {"fast=luvc"},
        "foveate run --engine v": {"vllm"},
        "foveate run --attn s": {"sdpa"},
    }.items(),
)
def test_the_tab_key(typed: str, offered: set[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1), "_FOVEATE_COMPLETE": "complete_bash"}
    done = CliRunner().invoke(app, [], env=words, prog_name="foveate")
    assert set(done.output.split()) == offered


def test_every_option_whose_values_are_known_is_completed() -> None:
    """What is left takes words of the user's own, or, of lmms-eval and of data sets, names that no command knows."""
    free = {"--prompt", "--method-json", "--engine-args"}
    of_one = {("methods", "--search"), ("eval tasks", "--task")}
    trained = {(name, "--split") for name in COMMANDS if name.startswith("train ")} | {("train reference", "--set")}
    for name, command in COMMANDS.items():
        for option in command.params:
            flag = next((word for word in option.opts if word.startswith("--")), option.opts[0])
            if takes_words(option) and flag not in free and (name, flag) not in of_one | trained:
                assert option._custom_shell_complete is not None, (name, flag)


def takes_words(option: Any) -> bool:
    """Whether values are text, no numbers or files; typer says it in one way or another."""
    if hasattr(option, "type_descriptor"):
        return not getattr(option, "is_flag", False) and option.type_descriptor.annotation in (str, list[str])
    return bool(option.type.name == "text")


def test_the_tab_key_is_fast() -> None:
    env = os.environ | {"COMP_WORDS": "foveate run -M ", "COMP_CWORD": "3", "_FOVEATE_COMPLETE": "complete_bash"}
    program = "import sys; sys.argv = ['foveate']; from foveate.lab.cli import app\n"
    program += (
        "try:\n    app(prog_name='foveate')\nfinally:\n    print(not {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"
    assert "fastv" in done.stdout.split()
