"""Run lmms-eval for every entry on every task, and keep what is done: answers as they come, scores when a task is through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from foveate.lab import outputs
from foveate.lab.asker import Asker, Cost, load_asker
from foveate.lab.checks import DENSE
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.lmms.memory import Memory
from foveate.lab.evaluation.lmms.plan import plan
from foveate.lab.evaluation.lmms.report import Public
from foveate.lab.evaluation.lmms.rows import rows
from foveate.lab.evaluation.lmms.scores import Finished, finished, read, save
from foveate.lab.evaluation.plan import Entry, contenders
from foveate.lab.evaluation.request import Tasks
from foveate.lab.evaluation.runner import Tell, about, versions
from foveate.lab.evaluation.store import WRITTEN, check_folder, file_stem
from foveate.lab.terminal import CommandError

LOG = "lmms-eval.log"
#: Inputs of each task on which budgets are measured.
PROBES = 8


def evaluate(request: Tasks, tell: Tell) -> Public | None:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    With several processes of accelerate, each asks its part of the questions; None: this is not the first of them.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then. Or lmms-eval failed: what is
            measured is kept.
    """
    request.check()
    with _logging(request.out) as log:
        return _evaluate(request, tell, log)


def _evaluate(request: Tasks, tell: Tell, log: Path) -> Public | None:
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    from foveate.lab.evaluation.lmms.harness import Harness

    tell("reading lmms-eval's tasks", 0.0)
    harness = Harness(request, log)
    tell("loading the model", 0.0)
    processes = Accelerator()
    several = processes.num_processes > 1
    where = processes.device if several else request.device
    asker = load_asker(request.model, request.dtype, where, request.attn, request.adapter)
    methods, left_out = contenders(request, asker, bounds=False, words=2)
    if list(methods) == [DENSE]:
        raise CommandError("say what to measure: --method NAME, as often as you like (see `foveate methods`)")
    identity = _identity(request, asker)
    if request.overwrite:
        if processes.is_main_process:
            outputs.clear(request.out, WRITTEN)
        processes.wait_for_everyone()
    check_folder(request.out / "answers", identity)
    tell("looking at the questions", 0.0)
    inputs = harness.inputs(asker, PROBES)
    # Other tasks are other questions; every process measures for itself.
    path = request.out / f"{file_stem('costs ' + ' '.join(request.tasks))}-{processes.process_index}.jsonl"
    costs = Costs(
        lambda method: Cost.total((asker.spend(each, method), 1) for each in inputs),
        path,
        {**identity, "questions": harness.digests},
    )
    made = [plan(request, asker, methods, costs, lambda what: tell(what, 0.0))]
    if several:  # counted in floating point, on what may be different devices
        broadcast_object_list(made)
    found, missed, unmatched = made[0]
    pairs = [(entry, task) for entry in found for task in request.tasks]
    headers = {
        pair: {**identity, "task": pair[1], **about(pair[0], request.by), "questions": harness.digests[pair[1]]}
        for pair in pairs
    }
    kept = {pair: read(scores_of(request, *pair), headers[pair]) for pair in pairs}
    for number, pair in enumerate(pairs):
        if kept[pair] is None:
            entry, task = pair
            tell(f"{task}: {entry}", number / len(pairs))
            answered = _answered(harness, asker, request, entry, task, headers[pair], processes.process_index)
            if answered is not None:
                save(scores_of(request, *pair), headers[pair], answered)
                kept[pair] = answered
    if several:
        processes.wait_for_everyone()
        processes.end_training()
    if not processes.is_main_process:
        return None
    of_entry = {entry: [one for task in request.tasks if (one := kept[entry, task]) is not None] for entry in found}
    lines, notes = rows(found, of_entry)
    return Public(request, request.model, identity, tuple(lines), tuple(missed), (*left_out, *unmatched, *notes))


def _answered(
    harness: Any, asker: Asker, request: Tasks, entry: Entry, task: str, header: dict[str, Any], rank: int
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


def _identity(request: Tasks, asker: Asker) -> dict[str, Any]:
    """What all answers of a folder have in common."""
    return {
        "model": request.model,
        "adapter": request.adapter,
        "weights": asker.digest,
        "dtype": str(asker.model.dtype).removeprefix("torch."),
        "per_task": request.per_task,
        "versions": versions("lmms-eval"),
    }


def _name(entry: Entry, task: str, request: Tasks) -> str:
    """``fastv(layer=4) at 0.25`` by tokens on mme -> ``mme-fastv-layer=4-at-0.25-tokens``."""
    return file_stem(f"{task} {entry}" + ("" if entry.budget is None else f" {request.by}"))


def scores_of(request: Tasks, entry: Entry, task: str) -> Path:
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
