"""Where a package is missing, a command says in one sentence what installs it; what does without it works."""

from __future__ import annotations

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
WITHOUT = """
import sys
missing, sys.argv = sys.argv[1], ["foveate", *sys.argv[2:]]
sys.modules[missing] = None
from foveate.lab.cli import main
main()
"""


def without(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, module, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=200, check=False)


@pytest.mark.parametrize(
    ("module", "words"),
    {
        "foveate_reference": ("demo", "--quick"),
        "foveate_reference ": ("run", "--image", "one.png", "--prompt", "what ?", "--method", "fastv"),
        "foveate_reference  ": ("eval", "reference", "--per-task", "1"),
        "foveate_reference   ": ("train", "reference", "--out", "x"),
        "vllm": ("serve", "nobody/nothing", "--method", "fastv"),
        "scipy": ("eval", "fidelity", "--method", "fastv"),
        "lmms_eval": ("eval", "tasks", "--task", "mme", "--model", "nobody/nothing", "--method", "fastv"),
    }.items(),
)
def test_one_sentence(module: str, words: tuple[str, ...], tmp_path: Path) -> None:
    draw(tmp_path / "one.png")
    done = without(module.strip(), *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert extras.install(module.strip()) in last


def test_only_who_asks_a_reference_model_needs_them() -> None:
    """Models of others can be asked, measured and trained without."""
    modules: tuple[str, ...] = (
        "run",
        "serve",
        "catalog",
        "report.collect",
        "report.page",
        "bench.sweep",
        "bench.show",
        "train.method",
    )
    modules += ("evaluation.table", "evaluation.fidelity.table", "evaluation.tune.table", "evaluation.lmms.run")
    imports = "; ".join(f"import foveate.lab.{module}" for module in modules)
    program = f"import sys; sys.modules['foveate_reference'] = None; {imports}"
    subprocess.run([sys.executable, "-c", program], check=True)


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
