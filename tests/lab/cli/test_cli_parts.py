"""The small parts behind the commands: options, grouped site names, pictures."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from foveate import DivPrune, FastV, Stride, ToMe, V2Drop
from foveate.lab import catalog, cli, outputs, terminal
from foveate.lab.evaluation.store import Record, Store
from foveate.lab.evaluation.tune.request import Tune
from foveate.lab.index import group_sites
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (("fastv", None, [], None), FastV()),
        (("FastV", 0.3, ["layer=4"], None), FastV(keep=0.3, layer=4)),
        (("fastv", 0.3, ["fastv.layer=4"], None), FastV(keep=0.3, layer=4)),
        (("stride", None, ["layers=1,3"], None), Stride(layers=(1, 3))),
        (("stride", None, ["layers=[1, 3]", "positions=renumber"], None), Stride(layers=(1, 3), positions="renumber")),
        (("stride", None, ["layers=1"], None), Stride(layers=(1,))),
        (("v2drop", None, ["layers=1,2", "ratios=0.5,0"], None), V2Drop(layers=(1, 2), ratios=(0.5, 0.0))),
        (("tome+fastv", None, [], None), ToMe() + FastV()),
        (("tome+fastv", None, ["layer=3"], None), ToMe() + FastV(layer=3)),
        (("tome + fastv", None, ["fastv.keep=0.2"], None), ToMe() + FastV(keep=0.2)),
        (("tome + fastv", 0.3, ["fastv.layer=3"], None), (ToMe() + FastV(layer=3)).with_keep(0.3)),
        ((None, None, [], '{"method": "divprune", "keep": 0.2}'), DivPrune(keep=0.2)),
    ],
)
def test_words_make_methods(words, method) -> None:
    assert method_from_words(*words) == method


def test_help_shows_all_that_is_said_of_an_option() -> None:
    """Words in brackets are taken for markup and vanish: defaults are told by `show_default`."""
    commands = [typer.main.get_command(cli.app)]
    texts = []
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        texts += [command.help, *(getattr(option, "help", None) for option in command.params)]
    assert sum(text is not None for text in texts) > 100
    assert [text for text in texts if text and "[" in text] == []


def test_progress_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody watches, a line now and then instead of a bar."""
    clock = iter([0.0, 0.0, 5.0, 12.0, 12.0])
    with terminal.Bar() as bar:
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        for what, done in (("loading", 0.0), ("asking [a]", 0.1), ("asking [b]", 0.5), ("asking [b]", 0.9)):
            bar.tell(what, done)
        monkeypatch.undo()
    assert capsys.readouterr().err.split("\n") == ["  0% loading", " 50% asking [b]", ""]


def test_an_option_is_given_once() -> None:
    with pytest.raises(CommandError, match="--option keep is given twice"):
        method_from_words("fastv", None, ["keep=0.3", "layer=3", " keep=0.4"], None)


def test_a_file_where_pictures_are_to_go(tmp_path: Path) -> None:
    """Said before a model is asked anything."""
    (tmp_path / "here").write_text("first")
    with pytest.raises(CommandError, match=r"--overlay .* is a file; give the name of a folder"):
        outputs.check_folder("overlay", tmp_path / "here" / "pictures")


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (["methods"], False),
        (["tune", "-M", "fastv", "--budget", "0.5"], False),
        (["tune", "-M", "fastv", "--budget", "0.5"], True),
    ],
)
def test_stopped_by_hand(
    words: list[str],
    goes_on: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """What was answered is kept, if anything was."""
    monkeypatch.setattr(outputs, "_kept", [])

    def stop(*_: object) -> None:
        store = Store(tmp_path / "answers.jsonl", {}, Record)
        if goes_on:
            store.add([Record("1", "color", "red", True, None)])
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "describe_methods", stop)
    monkeypatch.setattr(Tune, "check", stop)
    monkeypatch.setattr(sys, "argv", ["foveate", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    said = capsys.readouterr().err
    assert "stopped" in said
    assert ("the same command goes on" in said) == goes_on


def test_stopped_before_the_command_is_there() -> None:
    """While it is still imported."""
    stop = "import sys\nclass Stop:\n    def find_spec(self, name, *_):\n        if name == 'typer': raise KeyboardInterrupt\n"
    program = f"{stop}sys.meta_path.insert(0, Stop())\nfrom foveate.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_site_names_are_grouped() -> None:
    assert group_sites(["tower 0 (mid)", "tower 1 (mid)", "tower 3 (mid)"]) == "tower 0-1, 3 (mid)"
    assert group_sites(["lm_entry", "decoder 2", "decoder 2"]) == "lm_entry, decoder 2"
    assert group_sites(["decoder 1 (q of 0)", "decoder 2 (q of 0)", "decoder 4 (q of 3)"]) == (
        "decoder 1-2 (q of 0), decoder 4 (q of 3)"
    )
    assert (
        group_sites(["decoder 2 (of 1)", "decoder 3 (of 1)", "decoder 5 (of 4)"])
        == "decoder 2-3 (of 1), decoder 5 (of 4)"
    )
    assert group_sites([]) == ""


def said(monkeypatch: pytest.MonkeyPatch, watched: bool) -> str:
    """What comes out on stderr where something is noted while a bar is there."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: watched, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    with terminal.Bar() as bar:
        bar.tell("reading", 0.25)
        terminal.warn("mind this")
        bar.tell("asking", 0.5)
    return re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())


def test_a_log_has_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where colours are forced, as on build machines: a bar would share its line with what is said."""
    text = said(monkeypatch, watched=False)
    assert text.splitlines() == [" 25% reading", "mind this", " 50% asking"]


def test_what_is_said_goes_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(monkeypatch, watched=True)
    assert re.search(r"(^|\x1b\[2K|\r)mind this *\n", text), "on a line of its own, and the bar below it"
    assert not terminal._bars
