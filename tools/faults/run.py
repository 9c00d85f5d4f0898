"""Seed faults and see whether the tests notice: `python tools/faults/run.py`, in an hour at most on two cores; no part of CI.

Chosen faults (`chosen.py`) have the tests that should notice. Those drawn at random (`drawn.py`, always the same sixty) are
tried with the tests that execute their lines (`recording.py`, a quarter of an hour the first time). Each is applied alone, to
one of two copies of the repository; the first test that fails ends it. It needs `pip install coverage`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from chosen import CHOSEN, Fault
from drawn import draw
from recording import Recording

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "foveate"
CONTRACT = ("tests/test_probes.py", "-k", "(llava- or qwen2_5_vl) and (rows or cached or removal or report or keeping)")
HOUR = 3600.0
ENOUGH = 0.85  # of those drawn
BROKEN = ("tests that do not end", "tests that do not start")


@dataclass(frozen=True)
class Seed:
    """A fault, ready to be sown.

    Attributes:
        name: what is wrong then, and where.
        file: under ``src/foveate``.
        new: the source of the file with the fault.
        tests: what may notice, as arguments of one run of pytest after the other.
        drawn: whether it is one of those drawn at random.
    """

    name: str
    file: str
    new: bytes
    tests: Sequence[Sequence[str]]
    drawn: bool


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

    def pytest(self, *arguments: str, limit: float = HOUR, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run tests of the copy."""
        paths = [self.folder / "src", self.folder / "tools" / "faults", os.environ.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--disable-warnings", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )

    def notices(self, seed: Seed, limit: float) -> str | None:
        """The first test that fails with a fault, and passes without it; None: there is none."""
        path = self.folder / "src" / "foveate" / seed.file
        stock = path.read_bytes()
        for tests in seed.tests:
            left = list(tests)
            while left:
                path.write_bytes(seed.new)
                try:
                    failed = self.first_failure(left, limit)
                finally:
                    path.write_bytes(stock)
                if failed is None:
                    break
                to_it = left[: left.index(failed) + 1] if failed in left else [failed]
                if failed in BROKEN or self.first_failure(to_it, limit) is None:
                    return failed
                left = [test for test in left if test != failed] if failed in left else []
        return None

    def first_failure(self, tests: Sequence[str], limit: float) -> str | None:
        """The first test that fails, or what else is wrong."""
        try:
            ran = self.pytest("-x", "--tb=no", *tests, limit=limit)
        except subprocess.TimeoutExpired:
            return BROKEN[0]
        if ran.returncode in (0, 5):  # 5: of no test that runs here
            return None
        lines = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if not lines:
            return BROKEN[1]
        said = lines[0].split(" ", 1)[1]
        return next((test for test in tests if f"{said} ".startswith(f"{test} ")), said.split(" - ")[0])


def main() -> int:
    """Try all faults; the exit status is 0 if all of the chosen ones, and enough of those drawn, are caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chosen", action="store_true", help="only those")
    parser.add_argument("--drawn", type=int, default=60, help="how many at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults with this in their name or file")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for the tests of a fault")
    parser.add_argument(
        "--stale", action="store_true", help="take what was recorded, though the package has changed since"
    )
    options = parser.parse_args()
    start = time.monotonic()
    with copies() as free:

        def tried(seed: Seed) -> bool | None:
            if time.monotonic() - start > HOUR:
                return None
            copy, begin = free.get(), time.monotonic()
            try:
                by = copy.notices(seed, 3 * options.limit)
            finally:
                free.put(copy)
            said = f"caught by {by}" if by else "MISSED"
            print(f"{time.monotonic() - begin:4.0f} s  {seed.file}: {seed.name}: {said}", flush=True)
            return by is not None

        seeds = [seed for seed in map(patch, CHOSEN) if options.only in seed.name + seed.file]
        if not options.chosen:
            seeds += sown(free, options)
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(zip(seeds, pool.map(tried, seeds)))
    return summed_up(outcomes)


@contextmanager
def copies() -> Iterator[SimpleQueue[Copy]]:
    """Two copies of the repository, to be taken and put back."""
    free: SimpleQueue[Copy] = SimpleQueue()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        for folder in (one, other):
            free.put(Copy(Path(folder)))
        yield free


def patch(fault: Fault) -> Seed:
    """A chosen fault; fails loudly before anything runs."""
    text = (PACKAGE / fault.file).read_text()
    if text.count(fault.old) != 1:
        sys.exit(
            f"{fault.file} has {text.count(fault.old)} times {fault.old!r}, not once: write anew the fault {fault.name!r}"
        )
    gone = [test for test in fault.tests if test.endswith(".py") and not (REPOSITORY / test).exists()]
    if gone:
        sys.exit(f"there is no {gone[0]}: say which tests notice {fault.name!r}")
    return Seed(fault.name, fault.file, text.replace(fault.old, fault.new).encode(), [fault.tests, CONTRACT], False)


def sown(free: SimpleQueue[Copy], options: argparse.Namespace) -> list[Seed]:
    """The faults drawn at random, with the tests that execute their lines."""
    copy = free.get()
    recording = Recording(copy.folder, REPOSITORY / "build" / "faults", options.stale)

    def record(files: list[str], data: Path) -> None:
        source = str(copy.folder / "src" / "foveate")
        ran = copy.pytest("-p", "recorder", *files, FAULTS_RECORDING=str(data), FAULTS_SOURCE=source)
        if ran.returncode not in (0, 1):
            sys.exit(f"the tests do not run without a fault:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")

    recording.complete(record)
    free.put(copy)
    seeds = []
    for fault in draw(PACKAGE, ("runtime", "methods"), options.drawn, options.seed):
        if options.only in fault.file:
            tests = recording.tests(fault.file, fault.lines, options.limit)
            seeds.append(Seed(str(fault), fault.file, fault.source, [tests] if tests else [], True))
    return seeds


def summed_up(outcomes: list[tuple[Seed, bool | None]]) -> int:
    """Say what was caught; whether that is too little."""
    bad = 0
    for kind, enough in (("chosen", 1.0), ("drawn", ENOUGH)):
        tried = [caught for seed, caught in outcomes if caught is not None and seed.drawn == (kind == "drawn")]
        if tried:
            print(f"{kind}: caught {sum(tried)} of {len(tried)}")
            bad |= sum(tried) < enough * len(tried)
    late = sum(caught is None for _, caught in outcomes)
    if late:
        print(f"the hour is over: {late} were not tried")
    return bad


if __name__ == "__main__":
    sys.exit(main())
