"""Run lmms-eval for every entry on every task, and keep what is done: answers as they come, scores when a task is through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import foveate
from foveate.lab import needs, terminal
from foveate.lab.checks import check_budgets
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.lmms.asker import Asker
from foveate.lab.evaluation.lmms.memory import Memory
from foveate.lab.evaluation.lmms.plan import PROBES, Plan, Request, digest, methods, plan, spending, subject
from foveate.lab.evaluation.lmms.rows import PublicRow, rows
from foveate.lab.evaluation.lmms.scores import Finished, finished, read, save
from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.store import check_folder, file_stem
from foveate.lab.terminal import CommandError, check_once

Tell = Callable[[str, float], None]
LOG = "lmms-eval.log"


@dataclass(frozen=True)
class Public:
    """What came out.

    Attributes:
        request: what was measured.
        identity: model, versions and number of questions, as in the header of every file.
        plan: what was run.
        rows: one per entry, the stock model first.
        notes: what could not be compared, or was left out, and why.
    """

    request: Request
    identity: dict[str, Any]
    plan: Plan
    rows: tuple[PublicRow, ...]
    notes: tuple[str, ...]


def require() -> None:
    """Raise `CommandError` without lmms-eval."""
    needs.check("lmms_eval", "a public benchmark")


def evaluate(request: Request, tell: Tell) -> Public | None:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    With several processes of accelerate, each asks its part of the questions; None: this is not the first of them.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then. Or lmms-eval failed: what is
            measured is kept.
    """
    _check(request)
    with _logging(request.out) as log:
        return _evaluate(request, tell, log)


def _evaluate(request: Request, tell: Tell, log: Path) -> Public | None:
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    from foveate.lab.evaluation.lmms.harness import Harness

    tell("reading lmms-eval's tasks", 0.0)
    harness = Harness(request, log)
    tell("loading the model", 0.0)
    processes = Accelerator()
    several = processes.num_processes > 1
    asker, trained = subject(request, processes.device if several else None)
    labelled = methods(request, asker, trained)
    identity = _identity(request, asker)
    check_folder(request.out / "answers", identity)
    tell("looking at the questions", 0.0)
    inputs = harness.inputs(asker, PROBES)
    # Other tasks are other questions; every process measures for itself.
    path = request.out / f"{file_stem('costs ' + ' '.join(request.tasks))}-{processes.process_index}.jsonl"
    costs = Costs(spending(asker, inputs), path, {**identity, "questions": harness.digests})
    made = [plan(request, asker, labelled, costs, lambda what: tell(what, 0.0))]
    if several:  # counted in floating point, on what may be different devices
        broadcast_object_list(made)
    pairs = [(entry, task) for entry in made[0].entries for task in request.tasks]
    headers = {pair: {**identity, **_about(*pair, request.by), "questions": harness.digests[pair[1]]} for pair in pairs}
    kept = {pair: read(scores_of(request, *pair), headers[pair]) for pair in pairs}
    for number, pair in enumerate(pairs):
        if kept[pair] is None:
            entry, task = pair
            tell(f"{task}: {entry}", number / len(pairs))
            found = _answered(harness, asker, request, entry, task, headers[pair], processes.process_index)
            if found is not None:
                save(scores_of(request, *pair), headers[pair], found)
                kept[pair] = found
    if several:
        processes.wait_for_everyone()
        processes.end_training()
    if not processes.is_main_process:
        return None
    of_entry = {e: [found for t in request.tasks if (found := kept[e, t]) is not None] for e in made[0].entries}
    lines, notes = rows(made[0].entries, of_entry)
    return Public(request, identity, made[0], tuple(lines), (*made[0].notes, *notes))


def _answered(
    harness: Any, asker: Asker, request: Request, entry: Entry, task: str, header: dict[str, Any], rank: int
) -> Finished | None:
    """Everything that an entry says to a task; None: another process has it."""
    path = request.out / "answers" / f"{_name(entry, task, request)}-{rank}.jsonl"
    with asker.carrying(entry.method):
        results = harness.run(asker, Memory(path, header), task)
    if results is None:
        return None
    found = finished(results, Memory(path, header).costs())  # read again: other processes have written, too
    if entry.method is None and not any(scored.scores for scored in found.tasks.values()):
        metrics = (
            ", ".join(dict.fromkeys(name for scored in found.tasks.values() for name in scored.official)) or "none"
        )
        raise CommandError(
            f"the task {task!r} cannot be compared: lmms-eval gives its answers no score one by one (its metrics: {metrics}); "
            f"run `lmms-eval --model foveate --tasks {task}` for those"
        )
    return found


def _check(request: Request) -> None:
    require()
    terminal.check_folder("out", request.out)
    check_budgets(request.budgets, request.by, request.positions)
    check_once(tasks=request.tasks, budget=request.budgets, method=request.methods, option=request.options)
    for name, least in (("limit", request.limit), ("batch_size", request.batch_size)):
        if least is not None and least < 1:
            raise CommandError(f"--{name.replace('_', '-')} {least}: give a whole number, at least 1")
    if request.include is not None and not request.include.is_dir():
        raise CommandError(f"--include-path {str(request.include)!r}: there is no such folder")


def _identity(request: Request, asker: Asker) -> dict[str, Any]:
    """What all answers of a folder have in common."""
    names = ("torch", "transformers", "lmms-eval")
    return {
        "model": request.model,
        "adapter": request.adapter,
        "weights": digest(asker.model),
        "dtype": str(asker.model.dtype).removeprefix("torch."),
        "limit": request.limit,
        "versions": {name: version(name) for name in names} | {"foveate": foveate.__version__},
    }


def _about(entry: Entry, task: str, by: str) -> dict[str, Any]:
    return {
        "task": task,
        "entry": entry.label,
        "budget": entry.budget,
        "by": None if entry.budget is None else by,
        "method": None if entry.method is None else entry.method.to_dict(),
    }


def _name(entry: Entry, task: str, request: Request) -> str:
    """``fastv(layer=4) at 0.25`` by tokens on mme -> ``mme-fastv-layer=4-at-0.25-tokens``."""
    return file_stem(f"{task} {entry}" + ("" if entry.budget is None else f" {request.by}"))


def scores_of(request: Request, entry: Entry, task: str) -> Path:
    """The file that an entry's scores on a task are in."""
    return request.out / "scores" / f"{_name(entry, task, request)}.json"


@contextmanager
def _logging(folder: Path) -> Iterator[Path]:
    """What lmms-eval and its libraries print goes to a file, so that a table on stdout stays one."""
    from loguru import logger

    path = folder / LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise CommandError(f"cannot keep answers in {str(folder)!r}: {error}") from None
    with file, redirect_stdout(file), redirect_stderr(file):
        logger.remove()
        logger.add(file, level="INFO", colorize=False)
        try:
            yield path
        finally:
            logger.remove()
