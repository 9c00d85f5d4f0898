"""Run an experiment and keep what it finds. Until it is done, the old result stays as it is."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from foveate.lab.terminal import CommandError

from stored import surroundings
from stored.experiment import Experiment
from stored.result import Result, methods_in

OUT, BEGUN = "results.json", "begun.json"


def run(experiment: Experiment, root: Path, results: Path, again: bool) -> Result:
    """The new result, written. What was interrupted goes on if its command can; ``again``: it begins anew.

    Raises:
        CommandError: something is missing, or the command failed; the old result is as it was.
    """
    for module, how in experiment.needs.items():
        if importlib.util.find_spec(module) is None:
            raise CommandError(f"{experiment.name} needs {module}: {how}")
    work = results / f"{experiment.name}.partial"
    begun = _begin(experiment, root, work, again)
    start = time.monotonic()
    try:
        _command(experiment, root, work)
    finally:
        begun["seconds"] += time.monotonic() - start
        (work / BEGUN).write_text(json.dumps(begun) + "\n", encoding="utf-8")
    found = _found(experiment, work)
    result = Result(
        experiment=experiment.name,
        command=experiment.run,
        seed=experiment.seed,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        seconds=round(begun["seconds"], 1),
        commit=begun["commit"],
        dirty=begun["dirty"],
        versions=surroundings.versions(experiment.needs),
        machine=surroundings.machine(),
        methods=methods_in(found),
        found=found,
    )
    result.write(results / f"{experiment.name}.json")
    shutil.rmtree(work)
    return result


def adopt(experiment: Experiment, root: Path, results: Path, file: Path) -> Result:
    """A result that was measured outside of the store, written; what its JSON does not say of how is None.

    Its commit is the one that brought the file, if any did.
    """
    found = _read(file, f"what {file} holds")
    commit, date = surroundings.brought(root, file)
    versions, machine = (_said(found, key) for key in ("versions", "machine"))
    result = Result(
        experiment=experiment.name,
        command=experiment.run,
        seed=experiment.seed,
        date=date,
        seconds=None,
        commit=commit,
        dirty=None,
        versions=dict.fromkeys(surroundings.versions(experiment.needs)) | versions,
        machine=machine,
        methods=methods_in(found),
        found=found,
    )
    result.write(results / f"{experiment.name}.json")
    return result


def _said(found: Any, key: str) -> dict[str, Any]:
    """What a JSON says of its versions or machine, at its top or a level below."""
    places = [found, *found.values()] if isinstance(found, dict) else []
    said = (place[key] for place in places if isinstance(place, dict) and isinstance(place.get(key), dict))
    return next(said, {})


def _begin(experiment: Experiment, root: Path, work: Path, again: bool) -> dict[str, Any]:
    """What is noted of a run when it begins: it goes on under the same code only."""
    commit, dirty = surroundings.commit(root)
    now = {"command": experiment.run, "commit": commit, "dirty": dirty}
    if again and work.exists():
        shutil.rmtree(work)
    if (work / BEGUN).is_file():
        begun: dict[str, Any] = json.loads((work / BEGUN).read_text(encoding="utf-8"))
        for key, value in now.items():
            if begun[key] != value:
                raise CommandError(
                    f"{experiment.name} was begun with {key} {begun[key]!r}, now it is {value!r}: say --again to begin anew"
                )
        return begun
    work.mkdir(parents=True, exist_ok=True)
    begun = now | {"seconds": 0.0}
    (work / BEGUN).write_text(json.dumps(begun) + "\n", encoding="utf-8")
    return begun


def _command(experiment: Experiment, root: Path, work: Path) -> None:
    """Run it, with this Python and this checkout's package."""
    programs = {"python": [sys.executable], "foveate": [sys.executable, "-m", "foveate"]}
    here = _relative(work, root)  # what a command writes of its files names no folder of this machine
    filled = (
        word.replace("{work}", str(here)).replace("{out}", str(here / OUT)) for word in shlex.split(experiment.run)
    )
    first, *words = filled
    path = os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [*programs.get(first, [first]), *words],
            cwd=root,
            env=os.environ | {"PYTHONPATH": path},
            stdout=None if "{out}" in experiment.run else subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise CommandError(f"cannot run {experiment.name}: {error}") from None
    if done.returncode:
        raise CommandError(
            f"{experiment.name} ended with exit code {done.returncode}; its old result, if any, is as it was, and what "
            f"it left is in {_relative(work, root)}: run it again to go on"
        )
    if done.stdout and not (work / OUT).is_file():
        (work / OUT).write_bytes(done.stdout)


def _found(experiment: Experiment, work: Path) -> Any:
    if not (work / OUT).is_file():
        raise CommandError(f"{experiment.name} ended, but wrote no {OUT}: its command has to name {{out}}")
    return _read(work / OUT, f"what {experiment.name} left")


def _read(path: Path, what: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        raise CommandError(f"{what} is no JSON: {error}") from None


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
