"""The notebooks in examples/notebooks run from top to bottom; `serve.ipynb`, which needs vLLM, does so in tests/serving."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from notebook import cells
from program import EXAMPLES, run

RUNNER = Path(__file__).parent / "notebook.py"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
#: What each prints, among other things.
PRINTS = {
    "compress": (
        r"shape of cyan \? triangle \(right: triangle\)\n",
        "[a picture]",
        r"divprune +\d+% right, FLOPs \d+%\n",
    ),
    "evaluate": (r'"prompt": "', r"luvc +KL \d\.\d+, same answer \d+%, visual tokens \d+%\n"),
    "write_a_method": (r"\(right: \w+\)\n", r"edges +\d+%\nstride +\d+%\nrandom +\d+%\n"),
}


@pytest.mark.parametrize("name", PRINTS)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    printed = run(RUNNER, EXAMPLES / "notebooks" / f"{name}.ipynb", cwd=tmp_path)
    for pattern in PRINTS[name]:
        assert re.search(pattern, printed), printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert path.stem in (*PRINTS, "serve")
    for source in cells(path):
        compile(source, path.name, "exec")  # no magic, no shell
    text = "".join(line for cell in book["cells"] for line in cell["source"])
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).is_file(), target
