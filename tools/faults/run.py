"""Seed faults and see whether the tests notice: `python tools/faults/run.py`, in an hour at most; no part of CI.

Chosen faults (`chosen.py`) have the tests that should notice; those drawn at random (`drawn.py`, always the same sixty) are
tried with the tests nearest to their file, then with the contract. Each is applied to a copy of the repository, alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from chosen import CHOSEN, Fault
from drawn import Drawn, draw

REPOSITORY = Path(__file__).parents[2]
CONTRACT = ("tests/test_probes.py", "-k", "(llava- or qwen2_5_vl) and (rows or cached or removal or report or keeping)")
HOUR = 3600.0


class Copy:
    """A copy of what git knows, and of what is new, to break."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, folder / name)

    def fails(self, tests: Sequence[str], limit: float) -> bool:
        """Whether a test fails, or does not end."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        path = os.pathsep.join([str(self.folder / "src"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            ran = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return True
        return ran.returncode not in (0, 5)  # 5: there is no such test


def main() -> int:
    """Try all faults; as many as were missed of the chosen ones is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chosen", action="store_true", help="only those")
    parser.add_argument("--drawn", type=int, default=60, help="how many at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults with this in their name or file")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for the tests of a fault")
    options = parser.parse_args()
    start, missed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        chosen = [fault for fault in CHOSEN if options.only in fault.name + fault.file]
        for fault in chosen:
            patch(fault, copy.folder)  # fails loudly, before anything runs
        for fault in chosen:
            missed += not tried(
                copy, fault.name, fault.file, patch(fault, copy.folder), [fault.tests, CONTRACT], options.limit
            )
        if options.chosen:
            return missed
        package = copy.folder / "src" / "foveate"
        files = [path for part in ("runtime", "methods") for path in (package / part).rglob("*.py")]
        for drawn in draw(files, options.drawn, options.seed):
            if time.monotonic() - start > HOUR:
                print("the hour is over")
                break
            name = str(drawn.file.relative_to(package))
            if options.only in name:
                new = drawn.apply(drawn.file.read_bytes())
                tried(copy, f"{drawn.what} in line {drawn.line}", name, new, nearest(copy, drawn), options.limit / 2)
    return missed


def patch(fault: Fault, folder: Path) -> bytes:
    """The source with a chosen fault."""
    text = (folder / "src" / "foveate" / fault.file).read_text()
    if text.count(fault.old) != 1:
        sys.exit(
            f"{fault.file} has {text.count(fault.old)} times {fault.old!r}, not once: write anew the fault {fault.name!r}"
        )
    return text.replace(fault.old, fault.new).encode()


def tried(copy: Copy, name: str, file: str, new: bytes, tests: Sequence[Sequence[str]], limit: float) -> bool:
    """Whether a fault is noticed; says so."""
    path, begin = copy.folder / "src" / "foveate" / file, time.monotonic()
    stock = path.read_bytes()
    path.write_bytes(new)
    try:
        by = next((" ".join(each) for each in tests if copy.fails(each, limit)), None)
    finally:
        path.write_bytes(stock)
    print(f"{'MISSED' if by is None else 'caught'} {time.monotonic() - begin:5.0f} s  {file}: {name}", flush=True)
    return by is not None


def nearest(copy: Copy, fault: Drawn) -> list[tuple[str, ...]]:
    """What tests a file by its name, and then the contract."""
    stem, method = fault.file.stem, fault.file.parent.name == "methods"
    named = sorted((copy.folder / "tests").rglob(f"test_{stem}.py"))
    found = [tuple(str(path.relative_to(copy.folder)) for path in named)] if named else []
    if method:
        found.append(("--method", stem, "tests/methods/test_contract.py"))
    return [*found, CONTRACT]


if __name__ == "__main__":
    sys.exit(main())
