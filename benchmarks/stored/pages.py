"""Tables in pages, between ``<!-- table: NAME -->`` and ``<!-- /table -->``, and whole files; made of results, and checked."""

from __future__ import annotations

import difflib
import importlib.util
import io
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from foveate.lab.terminal import CommandError

from stored import listing, surroundings
from stored.experiment import Experiment, Shown, read_all
from stored.result import Result, read

OPEN, CLOSE = "<!-- table: {} -->", "<!-- /table -->"
#: Not in code: a page may say how markers look.
BEGIN = r"(?<!`)<!-- table: (?P<name>[\w-]+) -->"
MARKED = re.compile(BEGIN + r"(?P<text>.*?)<!-- /table -->", re.S)
STAMP = "results"  # the text in a picture that says what it was drawn from
LINES = 40  # of a difference at most
#: The table of all experiments.
LIST = Shown("experiments", "docs/results.md", "", (), whole=False)


class Pages:
    """A checkout: its experiments, their results, and the pages that show them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results = root / "benchmarks" / "results"

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        return read_all(self.root / "benchmarks" / "experiments")

    def experiment(self, name: str) -> Experiment:
        if name not in self.experiments:
            near = difflib.get_close_matches(name, self.experiments, 3) or sorted(self.experiments)
            raise CommandError(f"there is no experiment {name!r}; there is {', '.join(near)}")
        return self.experiments[name]

    def result(self, name: str) -> Result:
        return read(self.results / f"{self.experiment(name).name}.json")

    def shown(self) -> list[Shown]:
        """Every table and file, the list of all experiments among them."""
        experiments = self.experiments.values()
        return [*(one for experiment in experiments for one in experiment.shown), LIST]

    def marked(self) -> dict[Path, list[str]]:
        """Names of the tables in every page that has some: Markdown files that git knows, or would."""
        found = {}
        for path in sorted(_markdown_files(self.root)):
            names = re.findall(BEGIN, path.read_text(encoding="utf-8"))
            if names:
                found[path] = names
        return found

    def write(self) -> tuple[list[Path], list[str]]:
        """Every table and file as its result says it: the files that changed, and why others could not be written."""
        changed, problems = [], []
        for shown in self.shown():
            try:
                changed += [self.root / shown.file] if self._write(shown) else []
            except CommandError as error:
                problems.append(f"{shown.file}: {_what(shown)}: {error}")
        return list(dict.fromkeys(changed)), problems

    def problems(self) -> Iterator[str]:
        """Everything that is not as it should be, a sentence each; a difference is below its sentence."""
        yield from self._strays()
        for shown in self.shown():
            try:
                yield from self._compare(shown)
            except CommandError as error:
                yield f"{shown.file}: {_what(shown)}: {error}"

    def remarks(self) -> Iterator[str]:
        """What is no mistake, and a reader may want to know: results of code that this history does not have as it was."""
        results, known = self._results(), surroundings.history(self.root)
        changed = [name for name, result in results.items() if result.dirty]
        if changed:
            yield f"measured with changes that their commit lacks: {', '.join(changed)}"
        gone = [name for name, result in results.items() if known is not None and result.commit not in known]
        if gone:
            yield f"measured at a commit of a branch that was rebased, not in this history: {', '.join(gone)}"

    def _strays(self) -> Iterator[str]:
        """Files, tables and markers without a partner."""
        for name, experiment in self.experiments.items():
            try:
                result = self.result(name)
            except CommandError as error:
                if not self._awaited(name):
                    yield str(error)
                continue
            if experiment.awaits is not None:
                yield f"{name} says that it awaits a result, and there is one: delete `awaits`"
            if result.experiment != name:
                yield f"results/{name}.json is the result of {result.experiment}"
            if result.command != experiment.run:
                yield f"the result of {name} is of another command than the experiment's: run `make result NAME={name}`"
            if experiment.stale is not None and (result.date or "") > experiment.stale.since:
                yield f"{name} says that its result is stale, and it is of {result.date}: delete `stale`"
        for path in sorted(self.results.glob("*.json")):
            if path.stem not in self.experiments:
                yield f"results/{path.name} has no experiment: write experiments/{path.stem}.yaml, or delete it"
        shown = self.shown()
        tables = [(one.name, self.root / one.file) for one in shown if not one.whole]
        for name in sorted({one.name for one in shown if [other.name for other in shown].count(one.name) > 1}):
            yield f"the table {name} is there twice: give each a name of its own"
        for path, names in self.marked().items():
            for name in dict.fromkeys(names):
                where = path.relative_to(self.root)
                if names.count(name) > 1:
                    yield f"{where}: the marker of the table {name} is there twice"
                if (name, path) not in tables:
                    yield f"{where}: the marker {OPEN.format(name)} belongs to no experiment's table"

    def _write(self, shown: Shown) -> bool:
        path = self.root / shown.file
        if path.suffix == ".png":
            if stamp(path) == self._digests(shown):
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stamped(self._rendered(shown), self._digests(shown)))
            return True
        old, new = self._old_and_new(shown)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(new, encoding="utf-8")
        return old != new

    def _compare(self, shown: Shown) -> Iterator[str]:
        path = self.root / shown.file
        if path.suffix == ".png":
            if stamp(path) != self._digests(shown):
                yield f"{shown.file} was not drawn from {_files(shown)}: run `make tables`"
            return
        old, new = self._old_and_new(shown)
        if old != new:
            sentence = f"{shown.file}: {_what(shown)} is not what {_files(shown)} says: run `make tables`"
            yield f"{sentence}\n{_diff(shown.file, old, new)}"

    def _old_and_new(self, shown: Shown) -> tuple[str, str]:
        path = self.root / shown.file
        text = self._rendered(shown)
        if not isinstance(text, str):
            raise CommandError(f"{shown.by} returns {type(text).__name__}, and this file takes text")
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        return old, text.rstrip() + "\n" if shown.whole else placed(old, shown.name, text)

    def _rendered(self, shown: Shown) -> Any:
        if shown is LIST:
            return listing.markdown(self.experiments, self._results())
        waiting = [self.experiment(name).awaits for name in shown.of if self._awaited(name)]
        if waiting and not shown.file.endswith((".json", ".png")):
            return f"*Not measured yet: it takes {waiting[0]}.*"
        function, found = self._function(shown.by), [self.result(name).found for name in shown.of]
        try:
            return self._marked_stale(shown, function(*found))
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise CommandError(f"{shown.by} cannot make it of {_files(shown)}: {error!r}") from error

    def _awaited(self, name: str) -> bool:
        """Whether an experiment says what it takes to have a result, and has none."""
        return self.experiment(name).awaits is not None and not (self.results / f"{name}.json").is_file()

    def _marked_stale(self, shown: Shown, made: Any) -> Any:
        """What a function made of results, with the reason below it, in a sentence in brackets, where one of them is stale."""
        stale = [self.experiment(name).stale for name in shown.of]
        why = "; ".join(dict.fromkeys(each.why for each in stale if each is not None))
        if not why or not isinstance(made, str) or shown.file.endswith(".json"):
            return made
        made = made.strip()
        return f"{made}\n\n*Stale: {why}.*" if "\n" in made else f"{made} (stale)"

    def _digests(self, shown: Shown) -> str:
        return " ".join(self.result(name).digest() for name in shown.of)

    def _results(self) -> Mapping[str, Result]:
        there = (name for name in self.experiments if (self.results / f"{name}.json").is_file())
        return {name: self.result(name) for name in there}

    def _function(self, by: str) -> Callable[..., Any]:
        module, _, name = by.partition(":")
        path = self.root / "benchmarks" / "tables" / f"{module}.py"
        spec = importlib.util.spec_from_file_location(f"tables_{module}", path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise CommandError(f"there is no file benchmarks/tables/{module}.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        if not callable(getattr(loaded, name, None)):
            raise CommandError(f"benchmarks/tables/{module}.py has no function {name}")
        function: Callable[..., Any] = getattr(loaded, name)
        return function


def placed(page: str, name: str, text: str) -> str:
    """The page with its table; a single line stays on the line of its markers."""
    text = text.strip()
    inside = f"\n\n{text}\n\n" if "\n" in text else text
    found = [match for match in MARKED.finditer(page) if match["name"] == name]
    if len(found) != 1 or "<!-- table:" in found[0]["text"]:
        raise CommandError(f"write {OPEN.format(name)} and {CLOSE} where it belongs, once")
    (match,) = found
    return page[: match.start("text")] + inside + page[match.end("text") :]


def stamped(picture: bytes, text: str) -> bytes:
    """A PNG that says what it was drawn from."""
    info, out = PngInfo(), io.BytesIO()
    info.add_text(STAMP, text)
    with Image.open(io.BytesIO(picture)) as image:
        image.save(out, "PNG", pnginfo=info, optimize=True)
    return out.getvalue()


def stamp(path: Path) -> str | None:
    """What a PNG says of it."""
    try:
        with Image.open(path) as image:
            said = image.info.get(STAMP)
    except OSError:  # there is none, or it is broken
        return None
    return None if said is None else str(said)


def _what(shown: Shown) -> str:
    return "the file" if shown.whole else f"the table {shown.name}"


def _files(shown: Shown) -> str:
    return ", ".join(f"benchmarks/results/{name}.json" for name in shown.of) or "benchmarks/experiments"


def _diff(name: str, old: str, new: str) -> str:
    lines = list(
        difflib.unified_diff(old.splitlines(), new.splitlines(), name, "what the result says", lineterm="", n=0)
    )
    more = [f"... and {len(lines) - LINES} lines more"] if len(lines) > LINES else []
    return "\n".join(f"    {line}" for line in [*lines[:LINES], *more])


def _markdown_files(root: Path) -> Iterable[Path]:
    words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    try:
        names = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # no checkout: an archive of the sources
        return (path for path in root.rglob("*.md") if not any(part.startswith(".") for part in path.parts))
    return (path for path in (root / name for name in names if name) if path.is_file())
