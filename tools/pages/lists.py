"""What is committed of what the code says of itself: ``python tools/pages/lists.py`` writes it.

These are what ``foveate methods`` and ``foveate families`` say without importing torch, the list in README.md, the imports in
foveate/__init__.py that tell type checkers what `foveate.FastV` is, which models and methods are served, in docs/serving.md,
what the site has from runs (`asked`), of that the tables of docs/families.md, and how large the parts are (`weights`).
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asked
import facts
import methods
import verdicts
import weights
from repository import ROOT

from foveate.lab import declared, index
from foveate.methods import own_methods
from foveate.models import list_families
from foveate.plugins import defined_in
from foveate.serving.vllm.unserved import UNSERVED

LIST = re.compile(r"(<!-- methods: tools/pages/lists.py -->\n).*?(<!-- end -->)", re.S)
SERVED = re.compile(r"(<!-- served: tools/pages/lists.py -->\n).*?(<!-- end -->)", re.S)
REFUSED = re.compile(r"(<!-- unserved: tools/pages/lists.py -->\n).*?(<!-- end -->)", re.S)
IMPORTS = re.compile(r"(?:    from foveate\.methods\.\w+ import \w+ as \w+\n)+")


def in_readme(text: str) -> str:
    """README.md with the list of methods, under the headings that the site has."""
    blocks = []
    for heading, names in methods.groups().items():
        blocks.append(f"{heading}:\n" + "\n".join(map(_line, names)) + "\n\n")
    return LIST.sub(lambda found: f"{found[1]}\n{''.join(blocks)}{found[2]}", text)


def in_package(text: str) -> str:
    """foveate/__init__.py with an import for each method."""
    imports = sorted(
        f"    from {cls.__module__} import {cls.__name__} as {cls.__name__}\n" for cls in own_methods().values()
    )
    return IMPORTS.sub("".join(imports), text)


def in_index(text: str) -> str:
    """The index of the command line, with what every class says of itself."""
    return index.write(_described)


def in_serving(text: str) -> str:
    """docs/serving.md with why models are not served, and with what becomes of every method in vLLM."""
    text = REFUSED.sub(lambda found: f"{found[1]}\n{_unserved()}\n\n{found[2]}", text)
    return SERVED.sub(lambda found: f"{found[1]}\n{verdicts.table()}\n\n{found[2]}", text)


def _unserved() -> str:
    """A line for every reason."""
    names: dict[str, list[str]] = {}
    for name, why in UNSERVED.items():
        names.setdefault(why, []).append(f"`{name}`")
    rows = [["model class of vLLM", "because"], ["---"] * 2, *([", ".join(of), why] for why, of in names.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _described(folder: str, module: str) -> list[dict[str, Any]]:
    file = importlib.import_module(f"foveate.{folder}.{module}")
    if folder == "methods":
        return [declared.method(cls) for cls in defined_in(file)]
    return [declared.family(family) for name, family in list_families().items() if name == module]


#: The index is first: the list in README.md is made of it.
FILES: dict[Path, Callable[[str], str]] = {
    index.PATH: in_index,
    ROOT / "README.md": in_readme,
    ROOT / "src" / "foveate" / "__init__.py": in_package,
    ROOT / "docs" / "serving.md": in_serving,
}


def _line(name: str) -> str:
    """Class, source, and what the first line of its file says of it."""
    cls, paper = own_methods()[name], facts.methods()[name]["paper"]
    _, _, says = (sys.modules[cls.__module__].__doc__ or "").partition("\n")[0].partition(": ")
    source = f" ({methods.source(paper)})" if paper else ""
    return f"- `{cls.__name__}`{source}: {says}"


if __name__ == "__main__":
    for file, written in FILES.items():
        file.write_text(written(file.read_text(encoding="utf-8") if file.exists() else ""), encoding="utf-8")
    asked.write()
    asked.FAMILY_TABLES["write"]()
    weights.write()
