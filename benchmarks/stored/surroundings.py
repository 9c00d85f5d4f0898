"""What a result depends on besides its command: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: What a result may depend on: the code, and nothing that results are written into.
CODE = ("src", "benchmarks", ":!benchmarks/results")


def versions(more: Iterable[str] = ()) -> dict[str, str | None]:
    """Of Python, of what everything here rests on, and of ``more``; None: it is not installed as a package."""
    import foveate

    found: dict[str, str | None] = {"python": platform.python_version(), "foveate": foveate.__version__}
    return found | {name: _version(name) for name in ("torch", "transformers", *more)}


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, accelerator."""
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "cpu": _processor(),
        "architecture": platform.machine(),
        "cores": allowed,
        "memory_gib": None if memory is None else round(memory / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.system(),
    }


def commit(root: Path) -> tuple[str | None, bool | None]:
    """Of the checkout, and whether its code has changes besides; None: there is no checkout."""
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None, None
    return head.strip(), bool(_git(root, "status", "--porcelain", "--", *CODE))


def history(root: Path) -> frozenset[str] | None:
    """Every commit that this checkout's one comes after, itself too; None: they are not all here, or there is no checkout."""
    if (_git(root, "rev-parse", "--is-shallow-repository") or "").strip() != "false":
        return None
    return frozenset((_git(root, "rev-list", "HEAD") or "").split())


def brought(root: Path, file: Path) -> tuple[str | None, str | None]:
    """The commit that brought a file as it is, and its date."""
    said = _git(root, "log", "-1", "--format=%H %cs", "--", str(file.resolve()))
    commit, _, date = (said or "").strip().partition(" ")
    return commit or None, date or None


def _git(root: Path, *words: str) -> str | None:
    try:
        return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Its name; ``platform.processor()`` says but the architecture, if anything, on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
