"""Packages that only a part of foveate needs, and what installs them here: foveate itself is not on PyPI yet."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

#: Modules, and the extra of ``pyproject.toml`` that has their package.
EXTRAS = {
    "matplotlib": "lab",
    "scipy": "lab",
    "lmms_eval": "lmms",
    "vllm": "vllm",
    "peft": "train",
    "accelerate": "train",
    "datasets": "train",
    "torchvision": "video",
}
REFERENCE = "foveate_reference"  # a distribution beside this one


def install(module: str) -> str:
    """What gets a missing package, with whatever else of its extra is missing: ``pip install 'matplotlib>=3.9'``."""
    if module == REFERENCE:
        folder = Path(__file__).parents[2] / "packages" / "reference"
        if (folder / "pyproject.toml").is_file():
            return f"`pip install {folder}`"
        return "`pip install ./packages/reference` in a checkout of foveate"
    asked = module.replace("_", "-")
    wanted = [one for one in _required(EXTRAS[module]) if _name(one) == asked or not _is_installed(_name(one))]
    return f"`pip install {' '.join(map(_quoted, wanted or [asked]))}`"


def _required(extra: str) -> list[str]:
    """The requirements of an extra; none where foveate is on the path without being installed."""
    try:
        lines = requires("foveate") or []
    except PackageNotFoundError:
        return []
    return [line.partition(";")[0].strip() for line in lines if re.search(rf"extra == ['\"]{extra}['\"]", line)]


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _quoted(requirement: str) -> str:
    """As a shell takes it: it would read < and > otherwise."""
    return requirement if re.fullmatch(r"[\w.-]+", requirement) else f"'{requirement}'"
