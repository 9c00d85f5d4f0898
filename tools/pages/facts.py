"""What methods and families are, for pages: read from files that are committed, so that no page needs torch or a model.

* ``src/foveate/lab/index.json``: what classes say of themselves, which ``foveate methods`` reads, too;
* ``pairs.json``, ``served.json`` and ``survivors.json`` beside this file: what only a run tells (`asked`).

``python tools/pages/lists.py`` writes them all, and tests compare them with the code.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from repository import DOCS, ROOT

from foveate.lab import index

Facts = dict[str, Any]
PAIRS, SERVED, SURVIVORS = (Path(__file__).with_name(f"{name}.json") for name in ("pairs", "served", "survivors"))
SCENE = DOCS / "assets" / "scene.png"


@cache
def methods() -> dict[str, Facts]:
    """Name -> what `foveate.lab.declared.method` says of it."""
    found = index.own_methods()
    if found is None:
        raise SystemExit(f"{index.PATH.relative_to(ROOT)} is of other files: run python tools/pages/lists.py")
    return {facts["name"]: facts for facts in found}


def version() -> str:
    """Of the package."""
    package = (ROOT / "src" / "foveate" / "__init__.py").read_text(encoding="utf-8")
    [found] = re.findall(r'^__version__ = "(.+)"$', package, re.M)
    return str(found)


def code(method: str) -> str:
    """The file of a method."""
    return (ROOT / "src" / "foveate" / "methods" / f"{method}.py").read_text(encoding="utf-8").rstrip()


def asked(file: Path) -> Any:
    """What a run told."""
    return json.loads(file.read_text(encoding="utf-8"))
