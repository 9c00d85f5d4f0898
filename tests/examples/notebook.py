"""Runs a notebook without Jupyter: `python tests/examples/notebook.py FILE` executes its code cells, one after another.

Only Python is in them, no magic and no shell, so what runs here runs in a kernel, too. What the last line of a cell gives is
made into what a notebook would show of it.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any


def cells(path: Path) -> list[str]:
    """The source of every code cell."""
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def run(path: Path) -> None:
    """Execute a notebook, in this process."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells(path)):
        tree = ast.parse(source)
        shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"<{path.name}, cell {number}>", "exec"), names)
        if isinstance(shown, ast.Expr):
            value = eval(compile(ast.Expression(shown.value), f"<{path.name}, cell {number}>", "eval"), names)
            if value is not None:
                print(value._repr_png_() and "[a picture]" if hasattr(value, "_repr_png_") else repr(value))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
