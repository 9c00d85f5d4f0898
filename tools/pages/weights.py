"""What the parts of the repository weigh: ``python tools/pages/weights.py`` writes the table of CONTRIBUTING.md.

Lines of code are those that are no comment, no docstring and not blank, to the nearest hundred: the table says where the work
is, and a commit need not write it anew.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from repository import ROOT

PAGE = ROOT / "CONTRIBUTING.md"
TABLE = re.compile(r"(<!-- weights: tools/pages/weights.py -->\n).*?(<!-- end -->)", re.S)
PACKAGE, LAB = ROOT / "src" / "foveate", ROOT / "src" / "foveate" / "lab"
#: Of every folder of the library, and of the lab, what is in it; "." is the files beside them.
LIBRARY = {
    ".": "what a method is, sites and tokens, budgets, costs, the handle",
    "methods": "a file for each paper",
    "models": "a declarative file for each family",
    "ops": "pure functions on tensors: selection, merging, clustering",
    "runtime": "how fewer tokens travel through a stock model",
    "training": "one training loop for methods that learn",
    "serving": "the plugin for vLLM",
}
WING = {
    ".": "models by name, questions, checks and output that commands share",
    "cli": "the commands",
    "evaluation": "`foveate eval` and `tune`",
    "bench": "`foveate bench`",
    "leaderboard": "`foveate leaderboard`",
    "report": "`foveate report`",
    "story": "what became of every token, for pictures and pages",
    "inspection": "`foveate families --inspect`",
    "batch": "`foveate run --data`",
    "train": "`foveate train`",
}
BESIDE = {"packages/reference/src": "the reference benchmark and its models", "tests": "tests"}


def lines(path: Path) -> int:
    """Lines of code of a file."""
    text = path.read_text(encoding="utf-8")
    said = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code = (line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in said)
    return sum(1 for line in code if line and not line.startswith("#"))


def folders(of: Path) -> set[str]:
    """Those that have Python in them."""
    return {path.name for path in of.iterdir() if next(path.glob("*.py"), None) is not None}


def table() -> str:
    """A row for every part, with a sum for each wing."""
    rows = ["| part | what it is | files | lines of code |", "|---|---|---:|---:|"]
    library = {
        f"`{name}/`" if name != "." else "`foveate/*.py`": (says, _of(PACKAGE, name)) for name, says in LIBRARY.items()
    }
    lab = {f"`lab/{name}/`" if name != "." else "`lab/*.py`": (says, _of(LAB, name)) for name, says in WING.items()}
    for wing, parts in (("the library", library), ("the lab", lab)):
        rows += [_row(name, says, files) for name, (says, files) in parts.items()]
        rows.append(_row(f"*{wing}*", "", [file for _, files in parts.values() for file in files]))
    rows += [_row(f"`{name}/`", says, sorted((ROOT / name).rglob("*.py"))) for name, says in BESIDE.items()]
    return "\n".join(rows)


def write() -> None:
    """Put the table into its page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda found: f"{found[1]}\n{table()}\n\n{found[2]}", text), encoding="utf-8")


def _of(root: Path, name: str) -> list[Path]:
    return sorted(root.glob("*.py") if name == "." else (root / name).rglob("*.py"))


def _row(name: str, says: str, files: Iterable[Path]) -> str:
    counted = list(map(lines, files))
    return f"| {name} | {says} | {len(counted)} | {round(sum(counted), -2):,} |"


if __name__ == "__main__":
    write()
