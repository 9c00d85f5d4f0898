"""lmms-eval's Python interface: which tasks there are, their questions, and a run of one of them."""

from __future__ import annotations

import argparse
import hashlib
import random
import traceback
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.evaluator_utils import get_task_list
from lmms_eval.tasks import TaskManager, get_task_dict

from foveate.errors import FoveateError, first_line
from foveate.lab.asker import Asker
from foveate.lab.evaluation.lmms.memory import Memory
from foveate.lab.evaluation.lmms.model import Conversational, Simple
from foveate.lab.evaluation.request import Tasks
from foveate.lab.terminal import CommandError

CHOICES = ("multiple_choice", "loglikelihood")
SUPPORTED = ("generate_until", *CHOICES)


@cache
def _manager(include: str | None) -> Any:
    """The index of all tasks: thousands of files are read for it."""
    return TaskManager("ERROR", include_path=include, model_name="foveate")


class Harness:
    """The tasks of a request.

    Attributes:
        kinds: for each task that was asked for the class of model that it needs.
        digests: and SHA-256 of its first questions, of how many there are and of how answers are generated: where these
            change, answers that were kept are to something else.
    """

    def __init__(self, request: Tasks, log: Path) -> None:
        """
        Raises:
            CommandError: lmms-eval knows no such task.
        """
        self.request, self.log = request, log
        try:
            self._manager = _manager(None if request.include is None else str(request.include))
        except Exception as error:
            raise self._failed(f"the tasks in --include-path {str(request.include)!r} cannot be read", error) from None
        known = self._manager.all_tasks
        for task in request.tasks:
            if task not in known:
                near = [name for name in known if task.lower() in name.lower()] or get_close_matches(
                    task.lower(), known
                )
                hint = f"did you mean {', '.join(near[:5])}? " if near else ""
                raise CommandError(f"lmms-eval has no task {task!r}: {hint}`lmms-eval tasks list` shows all")
        self.kinds: dict[str, type[Simple]] = {}
        self.digests: dict[str, str] = {}

    def inputs(self, asker: Asker, each: int) -> list[Any]:
        """The first ``each`` questions of every task, in batches as they will be asked.

        Raises:
            CommandError: the data of a task cannot be loaded, it has nothing to see, or it asks in a way that is not supported.
        """
        found: list[Any] = []
        for name in self.request.tasks:
            leaves = self._loaded(name, "chat")
            kinds = {leaf.OUTPUT_TYPE for leaf in leaves}
            for kind in kinds - set(SUPPORTED):
                raise CommandError(f"the task {name!r} is of type {kind}, which foveate does not support: leave it out")
            if kinds & set(CHOICES):
                leaves = self._loaded(name, "simple")
            self.kinds[name] = Simple if kinds & set(CHOICES) else Conversational
            found += self._prepared(name, leaves, asker, each)
        return found

    def run(self, asker: Asker, memory: Memory, task: str) -> dict[str, Any] | None:
        """All questions of a task, and lmms-eval's results; None: another process has them."""
        lm = self._model(task, asker, memory)
        arguments = argparse.Namespace(process_with_media=False, output_path=str(self.request.out))
        try:
            results: dict[str, Any] | None = simple_evaluate(
                model=lm,
                tasks=[task],
                task_manager=self._manager,
                limit=self.request.per_task,
                batch_size=self.request.batch_size,
                bootstrap_iters=0,
                log_samples=True,
                cli_args=arguments,
                verbosity="INFO",
            )
        except FoveateError as error:
            self._log(error)
            raise
        except Exception as error:
            raise self._failed(f"lmms-eval failed on the task {task!r}", error) from None
        return results

    def _model(self, task: str, asker: Asker, memory: Memory) -> Simple:
        return self.kinds[task](asker=asker, memory=memory, batch_size=self.request.batch_size)

    def _loaded(self, name: str, kind: str) -> list[Any]:
        try:
            return [output.task for output in get_task_list(get_task_dict([name], self._manager, kind))]
        except Exception as error:
            raise self._failed(f"the data of the task {name!r} cannot be loaded", error) from None

    def _prepared(self, name: str, leaves: list[Any], asker: Asker, each: int) -> list[Any]:
        lm = self._model(name, asker, Memory())
        found, seen, digest = [], False, hashlib.sha256()
        random.seed(0)  # as lmms-eval does before it makes the questions of a task
        np.random.seed(1234)
        size = self.request.batch_size
        for leaf in leaves:
            try:
                lm.task_dict[leaf.task_name] = leaf.dataset
                leaf.set_config(key="num_fewshot", value=leaf.get_config("num_fewshot") or 0)
                leaf.build_all_requests(limit=min(each, self.request.per_task or each), rank=0, world_size=1)
                chats = [lm.chat(request) for request in leaf.instances[:each]]
            except FoveateError as error:
                self._log(error)
                raise
            except Exception as error:
                raise self._failed(f"the questions of the task {name!r} cannot be made", error) from None
            digest.update(f"{leaf.task_name} {len(leaf.eval_docs)} {leaf.config.generation_kwargs}".encode())
            for chat in chats:
                digest.update(chat.digest())
            seen = seen or any(any(chat.media) for chat in chats)
            for media in dict.fromkeys(chat.media for chat in chats):
                alike = [chat for chat in chats if chat.media == media]
                found += [asker.prepare(alike[i : i + size]) for i in range(0, len(alike), size)]
        self.digests[name] = digest.hexdigest()
        if not seen:
            raise CommandError(
                f"the task {name!r} has no images or videos in its questions, so there is nothing to compress: leave it out"
            )
        return found

    def _failed(self, what: str, error: Exception) -> CommandError:
        """A sentence; everything else is in the log."""
        self._log(error)
        attempt = getattr(error, "last_attempt", None)  # lmms-eval tries some things five times
        inner = error if attempt is None else attempt.exception() or error
        return CommandError(f"{what}: {type(inner).__name__}: {first_line(inner)} (all of it is in {str(self.log)!r})")

    def _log(self, error: Exception) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
