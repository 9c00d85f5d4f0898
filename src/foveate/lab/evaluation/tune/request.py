"""What ``foveate tune`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from foveate.lab import checks, needs, outputs, words
from foveate.lab.checks import check_at_least_1
from foveate.lab.completion import among
from foveate.lab.evaluation.request import Adapter, By, Own, Running
from foveate.lab.terminal import CommandError
from foveate.lab.typed import (
    BUDGETS,
    OPTION_OF_ONE,
    QUESTIONS,
    Model,
    NewTokens,
    OneAsJson,
    OneMethod,
    Overwrite,
    out_option,
    seed_option,
)

#: The method to use, and what was found where that is another, as what was given is better.
METHOD, LOST = "method.json", "found.json"


@dataclass(frozen=True)
class Search:
    """Where a search begins, and what it looks for: the cheapest setting within ``max_kl``, or the one of least KL for
    ``budget``."""

    out: Annotated[
        Path,
        out_option("Folder for method.json, trials and report; a run that was stopped goes on there."),
    ] = Path("tune-output")
    model: Model = "reference"
    adapter: Adapter = None
    method: OneMethod = None
    options: Annotated[tuple[str, ...], OPTION_OF_ONE] = ()
    described: OneAsJson = None
    max_kl: Annotated[
        float | None,
        Option(
            help="Find the cheapest setting whose KL divergence is at most this, in nats, e.g. 0.01.",
            rich_help_panel=BUDGETS,
        ),
    ] = None
    budget: Annotated[
        float | None,
        Option(
            help="Or find the most faithful setting for this share of the stock model's cost, e.g. 0.5.",
            rich_help_panel=BUDGETS,
        ),
    ] = None
    by: By = "flops"
    search: Annotated[
        str,
        Option(
            help="How: auto; for --max-kl dial, greedy, layers or withdrawal; for --budget sigmoid or options.",
            rich_help_panel=BUDGETS,
            autocompletion=among(*checks.SEARCHES),
        ),
    ] = "auto"
    trials: Annotated[int, Option(help="How many settings are tried at most.", rich_help_panel=BUDGETS)] = 100
    held_out: Annotated[
        float, Option(help="Share of the prompts that the search does not see.", rich_help_panel=QUESTIONS)
    ] = 0.5
    seed: Annotated[int, seed_option("Decides which prompts are used, and which of them are held out.")] = 0
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Tune(Own, Running, Search):
    """What ``foveate tune`` is asked for."""

    new_tokens: NewTokens = 16
    samples: Annotated[
        int | None,
        Option(help="How many prompts are used.", show_default="all; 80 of the benchmark", rich_help_panel=QUESTIONS),
    ] = None

    def check(self) -> None:
        checks.check_all(
            lambda: words.check_one(self.method, None, self.options, self.described),
            lambda: checks.check_choice("by", self.by, checks.COUNTED),
            lambda: checks.check_choice("search", self.search, checks.SEARCHES),
            lambda: outputs.check_folder("out", self.out),
            lambda: outputs.check_made(self.out, self.overwrite),
            lambda: outputs.check_made(self.out, self.overwrite, (METHOD, LOST), "trials.jsonl"),
            self._check_search,
            lambda: check_at_least_1("trials", self.trials),
            lambda: checks.check_model(self.model),
            lambda: Running.check(self),
            lambda: Own.check(self),
            lambda: needs.check("scipy", "foveate tune, which has intervals and tests,"),
        )

    def _check_search(self) -> None:
        if (self.max_kl is None) == (self.budget is None) and (self.budget is not None or self.search != "withdrawal"):
            raise CommandError(
                "say what to look for: either --max-kl 0.01, the most divergence, or --budget 0.5, the most cost"
            )
        if self.max_kl is not None and not 0 < self.max_kl < float("inf"):
            raise CommandError(f"--max-kl {self.max_kl}: give nats above 0, e.g. 0.01")
        if self.budget is not None and not 0 < self.budget < 1:
            raise CommandError(
                f"--budget {self.budget}: give a share of what the stock model spends, above 0 and below 1"
            )
        by_kl = self.budget is None
        if self.search in (("sigmoid", "options") if by_kl else ("dial", "greedy", "layers", "withdrawal")):
            goal, other = (
                ("--max-kl", "dial, greedy, layers or withdrawal") if by_kl else ("--budget", "sigmoid or options")
            )
            raise CommandError(f"--search {self.search} does not look for {goal}: choose {other}, or auto")
        if not 0 < self.held_out < 1:
            raise CommandError(f"--held-out {self.held_out}: give a share of the prompts, above 0 and below 1")
