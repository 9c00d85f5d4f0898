"""What is looked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from foveate.lab import terminal
from foveate.lab.checks import COUNTED, SEARCHES, check_choice
from foveate.lab.evaluation import fidelity
from foveate.lab.evaluation.fidelity.measuring import Own
from foveate.lab.terminal import CommandError
from foveate.method import Method

#: Of the reference benchmark, where no number is given.
SAMPLES = 80


@dataclass(frozen=True)
class Request:
    """What to look for: the cheapest setting within ``max_kl``, or the one of least KL within ``budget``.

    Attributes:
        out: folder for the method, the trials and the report.
        method: where to begin; what it is compared with.
        model: a folder, a hub id, ``reference`` or ``reference-llava``; ``adapter``: for it, from ``foveate train``.
        own: the prompts; without any, questions of the reference benchmark's validation split.
        max_kl: nats, or None.
        budget: share of what the stock model spends, or None.
        by: what is spent: ``flops``, ``kv`` or ``tokens``.
        search: one of `SEARCHES`.
        trials: settings to judge at most.
        held_out: share of the prompts that the search does not see.
        seed: draws prompts, and decides which are held out.
    """

    out: Path
    method: Method
    model: str = "reference"
    adapter: str | None = None
    own: Own = field(default_factory=Own)
    max_kl: float | None = None
    budget: float | None = None
    by: str = "flops"
    search: str = "auto"
    trials: int = 100
    held_out: float = 0.5
    seed: int = 0


def check(request: Request) -> None:
    """Raise `CommandError` for what is wrong with a request, before anything is loaded."""
    terminal.check_folder("out", request.out)
    if (request.max_kl is None) == (request.budget is None):
        raise CommandError(
            "say what to look for: either --max-kl 0.01, the most divergence, or --budget 0.5, the most cost"
        )
    if request.max_kl is not None and not 0 < request.max_kl < float("inf"):
        raise CommandError(f"--max-kl {request.max_kl}: give nats above 0, e.g. 0.01")
    if request.budget is not None and not 0 < request.budget < 1:
        raise CommandError(
            f"--budget {request.budget}: give a share of what the stock model spends, above 0 and below 1"
        )
    check_choice("by", request.by, COUNTED)
    check_choice("search", request.search, SEARCHES)
    by_kl = request.max_kl is not None
    if request.search in (("sigmoid", "options") if by_kl else ("dial", "greedy")):
        goal, other = ("--max-kl", "dial or greedy") if by_kl else ("--budget", "sigmoid or options")
        raise CommandError(f"--search {request.search} does not look for {goal}: choose {other}, or auto")
    if request.trials < 1:
        raise CommandError(f"--trials {request.trials}: give at least 1")
    if not 0 < request.held_out < 1:
        raise CommandError(f"--held-out {request.held_out}: give a share of the prompts, above 0 and below 1")


def asking(request: Request) -> fidelity.Request:
    """What is asked. The benchmark's test split is not for tuning."""
    from foveate_reference import TASKS

    samples = request.own.samples or SAMPLES
    own = request.own
    if own.data is None and not own.images and own.samples is None:
        own = replace(own, samples=SAMPLES)
    return fidelity.Request(
        request.out,
        model=request.model,
        adapter=request.adapter,
        per_task=-(-samples // len(TASKS)),
        seeds=(request.seed,),
        split="validation",
        own=own,
    )
