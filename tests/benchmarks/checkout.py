"""A checkout with one experiment, and what is done to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from stored import result, running
from stored.pages import Pages

ROOT = Path(__file__).parents[2]


EXPERIMENT = """\
says: How many
run: python count.py {out}
seed: 3
tables:
  counts: {in: page.md, by: shown:table}
"""


TABLES = """\
import io

from PIL import Image


def table(found):
    return f"| n |\\n|---|\\n| {found['n']} |"


def words(found):
    return f"{found['n']} of them"


def picture(found):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (found["n"], 0, 0)).save(out, "PNG")
    return out.getvalue()
"""


COUNT = (
    "import json, sys; json.dump({'n': 7, 'method': {'method': 'stride', 'positions': 'keep'}}, open(sys.argv[1], 'w'))"
)


PAGE = "# Page\n\n<!-- table: counts -->\n<!-- /table -->\n\nThe end.\n"


def run(root: Path, name: str = "counts", again: bool = False) -> result.Result:
    """As ``store.py run`` does it."""
    pages = Pages(root)
    done = running.run(pages.experiment(name), root, pages.results, again)
    assert pages.write()[1] == []
    return done


def problems(root: Path) -> list[str]:
    return list(Pages(root).problems())


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def redo(root: Path, old: str, new: str) -> None:
    """The experiment, written otherwise."""
    change(root / "benchmarks" / "experiments" / "counts.yaml", old, new)


def env() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def git(root: Path, *words: str) -> Any:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()
