"""The result on disk: one JSON file with every measurement; tables and plots are made of it, and a run goes on from it."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.lab import outputs
from foveate.lab.terminal import CommandError
from foveate.serialise import from_json, read_text

SCHEMA = 1
DENSE = "dense"  # the label of the stock model


@dataclass
class Line:
    """The stock model or a method in one case.

    Attributes:
        method: as `Method.to_dict` says it; None: the stock model.
        probe: what `foveate.lab.bench.measure.probe` found, once it has looked.
        repeats: what `foveate.lab.bench.measure.timed` found in each round.
        steps: what `foveate.lab.bench.steps.step_ratios` found, of a method.
        error: why there is neither, in a sentence.
    """

    method: dict[str, Any] | None
    probe: dict[str, Any] | None = None
    repeats: list[dict[str, float]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass
class Case:
    """One size of call on one model.

    Attributes:
        model: name of the shape, or what was given as model.
        tokens: visual tokens of a row, as many as there really were; batch: rows.
        images, size: of a row: how many, and ``[height, width]`` of each, in tokens for a shape and in pixels for a model.
        text: other tokens of a row.
        lines: by label, the stock model first.
        dtype, attn: of the model, once it is there.
    """

    model: str
    tokens: int
    batch: int
    images: int
    size: list[int]
    text: int
    lines: dict[str, Line]
    dtype: str = ""
    attn: str = ""

    @property
    def key(self) -> tuple[str, int, int]:
        return self.model, self.tokens, self.batch

    @property
    def rounds(self) -> int:
        """Whole rounds that were timed."""
        return min((len(line.repeats) for line in self.lines.values() if line.error is None), default=0)


@dataclass
class Result:
    """What was measured so far.

    Attributes:
        settings: what all measurements have in common; a run goes on only under the same.
        command: that wrote it last.
        cases: in the order in which they were begun.
        ended: the command that has run to its end; "": none has yet.
        shown: pictures and tables that were made of it, as paths from its folder.
        there: what this run has last read from its file or written to it; "": it has no file yet.
    """

    settings: dict[str, Any]
    command: str
    cases: list[Case] = field(default_factory=list)
    ended: str = ""
    shown: list[str] = field(default_factory=list)
    there: str = field(default="", repr=False, compare=False)

    def case(self, wanted: Case) -> Case:
        """The case of the same key, or ``wanted``, which then is one of the result's."""
        for case in self.cases:
            if case.key == wanted.key:
                return case
        self.cases.append(wanted)
        return wanted

    def to_dict(self) -> dict[str, Any]:
        """Plain data; every number that was measured is in it."""
        found = asdict(self)
        del found["there"]
        return {"schema": SCHEMA, **found}

    def write(self, path: Path) -> None:
        """All of it or nothing: a reader never meets half of a file, and what another run has written there stays."""
        part = path.with_name(f".{path.name}.{os.getpid()}.partial")
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        try:
            if (path.read_text(encoding="utf-8", errors="replace") if path.exists() else "") not in ("", self.there):
                raise outputs.taken(path, "was written by another run while this one measured, and is left as it is")
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
            self.there = text
            outputs.keeps(path)
        except OSError as error:
            raise CommandError(f"cannot write the result to {str(path)!r}: {error}") from None


def read(path: Path) -> Result:
    """A result that was written before."""
    try:
        data = from_json(text := read_text(path))
    except FileNotFoundError:
        raise CommandError(f"there is no result {str(path)!r}: `foveate bench --out {path}` makes one") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{str(path)!r} is not a result of `foveate bench`: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise CommandError(f"{str(path)!r} is not a result of `foveate bench` (schema {SCHEMA}): give another file")
    try:
        found = of_json(data)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CommandError(
            f"{str(path)!r} is not a whole result of `foveate bench`: {what}; give another file"
        ) from None
    found.there = text
    return found


def of_json(data: dict[str, Any]) -> Result:
    """What `Result.to_dict` made plain, as it was."""
    given = {name: value for name, value in data.items() if name not in ("schema", "cases")}
    cases = [
        Case(**{**case, "lines": {name: Line(**line) for name, line in case["lines"].items()}})
        for case in data["cases"]
    ]
    result = Result(**given, cases=cases)
    _check(result)
    return result


def _check(result: Result) -> None:
    """Raise an error for what is not as `Result` says: files are edited by hand, and tables are made of them."""
    settings = result.settings
    _positive(settings, "new_tokens", "threads")
    names = [*settings["versions"].values(), settings["cpu"], settings["device"], settings["commit"] or ""]
    names += [case.model for case in result.cases]
    if not all(isinstance(name, str) for name in [*names, result.command]):
        raise ValueError("what was measured, or with what, is no text")
    for case in result.cases:
        _positive(vars(case), "tokens", "batch", "images", "text")
        if list(case.lines) != list(settings["methods"]) or DENSE not in case.lines:
            raise ValueError(f"the methods at {case.tokens} visual tokens are not those of the whole")
        for label, line in case.lines.items():
            if line.probe is not None:
                _positive(line.probe, "new_tokens", "counted", "kv", "peak")
            if line.probe is not None and line.method is not None:
                for flops in (line.probe["full_flops"], line.probe["flops"]):
                    _positive(flops, "prefill", "head")
                    sum(flops.values())
                if not 0 <= line.probe["tokens"] < math.inf:
                    raise ValueError(f"tokens of {label} is {line.probe['tokens']!r}")
            for times in line.repeats:
                _positive(times, "tower", "prefill", "first", "total", *times)
            for ratio in line.steps:
                _positive({"a step": ratio}, "a step")


def _positive(found: dict[str, Any], *names: str) -> None:
    for name in names:
        value = found[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}")


def resume(path: Path, settings: dict[str, Any], command: str) -> Result:
    """The result in ``path`` if it was measured under the same settings; a new one if there is none."""
    if not path.exists():
        return Result(settings, command)
    found = read(path)
    for name in {**settings, **found.settings}:
        there, here = found.settings.get(name), settings.get(name)
        if there != here:
            raise outputs.of_another_run(path, name, there, here)
    found.command = command
    outputs.keeps(path)
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the code."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "device": cuda or device.type,
        "versions": {"foveate": foveate.__version__, **{name: version(name) for name in ("torch", "transformers")}},
        "commit": _commit(),
    }


def _processor() -> str:
    """The name of the CPU, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that the package is run from, with a + if something was changed; None: not a checkout."""
    here = Path(foveate.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        if not git("ls-files", "__init__.py"):  # installed inside of somebody else's repository
            return None
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
