"""Where a package is missing, a command says in one sentence what installs it; what does without it works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import draw

from foveate.lab.needs import INSTALLED_BY

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
    assert f"pip install {INSTALLED_BY[module.strip()]}" in last


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
        "train.adsc",
    )
    modules += ("evaluation.table", "evaluation.fidelity.table", "evaluation.tune.table", "evaluation.lmms.run")
    imports = "; ".join(f"import foveate.lab.{module}" for module in modules)
    program = f"import sys; sys.modules['foveate_reference'] = None; {imports}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_installs_it_is_there() -> None:
    extras = (ROOT / "pyproject.toml").read_text()
    for command in INSTALLED_BY.values():
        name = command.strip("'").removeprefix(".")
        assert (ROOT / command).is_dir() if command.startswith("./") else f"\n{name.strip('[]')} = [" in extras
