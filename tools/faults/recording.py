"""Which tests execute a line of the package, and how long each takes: recorded once, kept in build/faults, and read from there.

A change in ``src``, or in what tests share, makes all of it void; a change in a file of tests what is known of that file.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coverage import CoverageData
from drawn import in_turns

# Without what calls the package from afar (the command line, benchmarks, servers), and what asks the repository, not the code.
FOLDERS = (".", "runtime", "answers", "methods", "training", "ops")
NOT_OF_THE_CODE = ("test_ci.py", "test_hosts.py", "test_house.py", "test_readme.py", "test_scale.py")


class Recording:
    """What was recorded of the tests of a repository.

    Args:
        repository: whose ``src`` and ``tests`` are meant.
        folder: where it is kept.
        stale: take what there is of an older ``src``, too: lines that have moved since have the tests of others.
    """

    def __init__(self, repository: Path, folder: Path, stale: bool) -> None:
        tests = repository / "tests"
        paths = [path for part in FOLDERS for path in sorted((tests / part).glob("test_*.py"))]
        files = [path for path in paths if path.name not in NOT_OF_THE_CODE]
        shared = [path for path in sorted(tests.rglob("*.py")) if not path.name.startswith("test_")]
        self._source = _digest([*sorted((repository / "src").rglob("*.py")), *shared])
        self._files = {str(path.relative_to(repository)): _digest([path]) for path in files}
        self._folder, self._stale = folder, stale
        self._parts: list[_Part] = []

    def complete(self, run: Callable[[list[str], Path], None]) -> None:
        """Record what is missing: ``run`` is given files of tests and where to leave what the plugin records of them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._read()
        known = {name for part in self._parts for name in part.files}
        missing: dict[Path, dict[str, str]] = defaultdict(dict)
        for name, digest in self._files.items():
            if name not in known:
                missing[Path(name).parent][name] = digest

        def record(files: dict[str, str]) -> None:
            part = json.dumps({"source": self._source, "files": files})
            data = self._folder / f"{hashlib.sha1(part.encode()).hexdigest()[:12]}.sqlite"
            data.unlink(missing_ok=True)  # of a run that was stopped
            run(list(files), data)
            data.with_suffix(".part").write_text(part)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(record, missing.values()))
        self._read()

    def tests(self, file: str, lines: Iterable[int], limit: float) -> list[str]:
        """The tests that execute one of the lines of a file, as many as run within ``limit`` seconds, and at least one.

        First come those of the file's name. Then of each test function its quickest case, and the second one of each, and so
        on: functions ask for different things.
        """
        found: dict[str, float] = {}
        for part in self._parts:
            found |= part.tests(file, lines)
        functions: dict[str, list[str]] = defaultdict(list)
        for test in sorted(found, key=lambda test: (found[test], test)):
            functions[test.split("[")[0]].append(test)
        near = f"/test_{Path(file).stem}.py::"
        chosen: list[str] = []
        for test in sorted(in_turns(functions.values()), key=lambda test: near not in test):
            if found[test] <= limit or not chosen:
                chosen.append(test)
                limit -= found[test]
        return chosen

    def _read(self) -> None:
        """Open the parts that hold still, the newest that there is of each file of tests."""
        self._parts, seen = [], set[str]()
        for path in sorted(self._folder.glob("*.part"), key=lambda path: path.stat().st_mtime, reverse=True):
            part = json.loads(path.read_text())
            if self._stale or part["source"] == self._source:
                holds = {name for name, digest in part["files"].items() if self._files.get(name) == digest} - seen
                self._parts += [_Part(path, holds)] if holds else []
                seen |= holds


class _Part:
    """What one run of pytest left, as far as it is about ``files``."""

    def __init__(self, path: Path, files: set[str]) -> None:
        self.files = files
        self._lines = CoverageData(str(path.with_suffix(".sqlite")))
        self._lines.read()
        self._seconds: dict[str, float] = json.loads(path.with_suffix(".json").read_text())

    def tests(self, file: str, lines: Iterable[int]) -> dict[str, float]:
        """The tests that execute a line, and the seconds that each takes."""
        where = next((name for name in self._lines.measured_files() if name.endswith(f"/src/foveate/{file}")), None)
        by = self._lines.contexts_by_lineno(where) if where else {}
        tests = {test for line in lines for test in by.get(line, [])}
        return {t: self._seconds[t] for t in tests if t in self._seconds and t.split("::")[0] in self.files}


def _digest(paths: list[Path]) -> str:
    return hashlib.sha1(b"".join(path.read_bytes() for path in paths)).hexdigest()
