"""Where a package is missing, a command says in one sentence what installs it; what does without it works."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from command import draw

from foveate import extras

ROOT = Path(__file__).parents[3]
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "demo": ("foveate_reference", ("demo", "--quick")),
    "run": ("foveate_reference", ("run", "--image", "one.png", "--prompt", "what ?", "--method", "fastv")),
    "eval reference": ("foveate_reference", ("eval", "reference", "--per-task", "1")),
    "train reference": ("foveate_reference", ("train", "reference", "--out", "x")),
    "serve": ("vllm", ("serve", "nobody/nothing", "--method", "fastv")),
    "eval fidelity": ("scipy", ("eval", "fidelity", "--method", "fastv")),
    "tune": ("scipy", ("tune", "--method", "fastv", "--budget", "0.5")),
    "leaderboard": ("scipy", ("leaderboard", "--from", "x")),
    "eval tasks": ("lmms_eval", ("eval", "tasks", "--task", "mme", "--model", "nobody/nothing", "--method", "fastv")),
}
#: Models of others can be asked, measured and trained without reference models.
MODULES = [
    *("run", "serve", "catalog", "report.collect", "report.page", "bench.sweep", "bench.show", "train.method"),
    *("evaluation.table", "evaluation.fidelity.table", "evaluation.tune.table", "evaluation.lmms.run"),
]
#: For each package foveate is imported anew, where no module of that package can be.
WITHOUT = """
import contextlib, importlib, io, json, sys, torch, transformers

@contextlib.contextmanager
def without(missing):
    for loaded in list(sys.modules):
        if loaded.split(".")[0] in ("foveate", missing):
            del sys.modules[loaded]
    sys.modules[missing] = None
    yield
    del sys.modules[missing]

cases, modules, found = *json.load(sys.stdin), {}
for missing in dict.fromkeys(package for package, _ in cases.values()):
    with without(missing):
        for name, (package, words) in cases.items():
            if package != missing:
                continue
            sys.argv, said = ["foveate", *words], io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                try:
                    importlib.import_module("foveate.lab.cli").main()
                except SystemExit as stop:
                    found[name] = stop.code, said.getvalue()
        for module in modules if missing == "foveate_reference" else ():
            importlib.import_module(f"foveate.lab.{module}")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """The exit status of every command of `CASES` without its package, and what it says on stderr, one after another in a
    process of their own, which imports `MODULES` as well."""
    folder = tmp_path_factory.mktemp("here")
    draw(folder / "one.png")
    given = json.dumps([CASES, MODULES])
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CASES)
def test_one_sentence(name: str, said: dict[str, tuple[int, str]]) -> None:
    status, text = said[name]
    assert status == 2, text
    assert "Traceback" not in text
    start, error, words = text.rpartition("Error: ")
    assert error
    assert not start or start.endswith("\n")
    assert all(line.startswith("also: ") for line in words.strip().splitlines()[1:])  # of several mistakes
    assert extras.install(CASES[name][0]) in words
    if CASES[name][0] in extras.EXTRAS:
        assert f"'.[{extras.EXTRAS[CASES[name][0]]}]' has all" in words
        assert f"foveate {name}" in words or name == "eval tasks" or "foveate eval" in words, (
            "said by the check, not by an import"
        )


@pytest.mark.parametrize("module", extras.EXTRAS)
def test_what_installs_it(module: str) -> None:
    """A hint names requirements that the extra has, and no package that is not on PyPI."""
    words = shlex.split(extras.install(module).strip("`"))
    assert words[:2] == ["pip", "install"]
    named = next(
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith(extras.EXTRAS[module])
    )
    names = [re.split(r"[^\w-]", word)[0] for word in words[2:]]
    assert module.replace("_", "-") in names
    assert all(f'"{name}' in named for name in names)


def test_a_hint_where_foveate_was_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", nothing)
    assert extras.install("lmms_eval") == "`pip install lmms-eval`"
    assert extras.install(extras.REFERENCE) == f"`pip install {ROOT / 'packages' / 'reference'}`"
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "a" / "b" / "extras.py"))
    assert "in a checkout of foveate" in extras.install(extras.REFERENCE)


def test_every_hint_is_made_there() -> None:
    """A hint that somebody has typed is soon wrong."""
    typed = [path.name for path in (ROOT / "src").rglob("*.py") if "pip install" in path.read_text()]
    assert sorted(typed) == ["__init__.py", "extras.py", "trained.py"], (
        "transformers' range and safetensors are no extras"
    )
