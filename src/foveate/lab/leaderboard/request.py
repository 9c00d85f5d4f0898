"""What ``foveate leaderboard`` can be asked for: its options, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from foveate.extras import REFERENCE
from foveate.lab import checks, completion, needs, outputs, words
from foveate.lab.checks import check_at_least_1
from foveate.lab.evaluation.request import MethodsAsJson, OptionsOfMethods, Plan, TasksOfBenchmark
from foveate.lab.terminal import CommandError, check_once
from foveate.lab.typed import (
    BUDGETS,
    MACHINE,
    METHODS,
    OUTPUT,
    QUESTIONS,
    Model,
    Overwrite,
    options,
)

PAGE = "leaderboard.html"


@dataclass(frozen=True)
class Board:
    """What ``foveate leaderboard`` is asked for."""

    out: Annotated[
        Path,
        Option(
            "--out",
            "-o",
            help="Folder for answers, results.json and the page; a run stopped there goes on.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("leaderboard-output")
    source: Annotated[
        tuple[Path, ...],
        Option(
            "--from",
            help="Measure nothing: put what is in this folder, or this results.json, on the page; repeatable.",
            rich_help_panel=OUTPUT,
        ),
    ] = ()
    model: Model = "reference"
    methods: Annotated[
        tuple[str, ...],
        Option(
            "--method",
            "-M",
            help="Measure this one only, beside the controls; other rows of the folder stay. Repeatable.",
            show_default="all that fit",
            rich_help_panel=METHODS,
            autocompletion=completion.a_method(*checks.BOUNDS),
        ),
    ] = ()
    options: OptionsOfMethods = ()
    described: MethodsAsJson = ()
    adapters: Annotated[
        tuple[str, ...],
        Option(
            "--adapter",
            help="Folder or hub id of what `foveate train` wrote for this model; repeatable.",
            rich_help_panel=METHODS,
            autocompletion=completion.a_folder,
        ),
    ] = ()
    flops: Annotated[
        tuple[float, ...],
        Option(
            "--flops",
            help="Share of the FLOPs of the stock model's whole call; repeatable.",
            show_default="0.8, 0.65, 0.5",
            rich_help_panel=BUDGETS,
        ),
    ] = (0.8, 0.65, 0.5)
    kv: Annotated[
        tuple[float, ...],
        Option(
            "--kv",
            help="Share of the bytes of the stock model's KV cache; repeatable.",
            show_default="0.5, 0.25",
            rich_help_panel=BUDGETS,
        ),
    ] = (0.5, 0.25)
    tasks: TasksOfBenchmark = ()
    per_task: Annotated[int, Option(help="Questions of each task in the first round.", rich_help_panel=QUESTIONS)] = 25
    more: Annotated[
        int, Option(help="How many times as many the second round asks besides.", rich_help_panel=QUESTIONS)
    ] = 1
    seed: Annotated[int, Option(help="Of the first round's questions.", rich_help_panel=QUESTIONS)] = 0
    best: Annotated[
        int,
        Option(
            help="Methods of the second round, which are timed, too, beside the controls; 0: there is none.",
            rich_help_panel=METHODS,
        ),
    ] = 8
    shape: Annotated[
        str,
        Option(
            help="What is timed: random weights in this shape.",
            rich_help_panel=MACHINE,
            autocompletion=completion.among(*checks.SHAPES),
        ),
    ] = "small-qwen2.5-vl"
    tokens: Annotated[int, Option(help="Visual tokens of the call that is timed.", rich_help_panel=QUESTIONS)] = 256
    repeats: Annotated[int, Option(help="Timed rounds; 0: nothing is timed.", rich_help_panel=QUESTIONS)] = 3
    plan: Plan = False
    overwrite: Overwrite = False

    @property
    def budgets(self) -> dict[str, tuple[float, ...]]:
        """By what they count."""
        return {"flops": self.flops, "kv": self.kv}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the second round's questions, those of the first round first."""
        return tuple(range(self.seed, self.seed + 1 + self.more))

    def check(self) -> None:
        """Raise a `FoveateError` for what is wrong with the words alone."""
        outputs.check_folder("out", self.out)
        if self.source:
            self._check_shown()
            return
        words.check_many(self.methods, self.options, self.described, checks.BOUNDS)
        check_once(method=self.methods, option=self.options, adapter=self.adapters, flops=self.flops, kv=self.kv)
        check_once(task=self.tasks)
        for task in self.tasks:
            checks.check_choice("task", task, checks.TASKS)
        for by, budgets in self.budgets.items():
            checks.check_budgets(budgets, by)
        if not (self.flops or self.kv):
            raise CommandError("say what methods may spend: --flops 0.5 or --kv 0.5, as often as you like")
        checks.check_model(self.model)
        checks.check_shape(self.shape)
        for adapter in self.adapters:
            checks.check_trained(adapter)
        for option, count in (("per-task", self.per_task), ("more", self.more), ("tokens", self.tokens)):
            check_at_least_1(option, count)
        checks.check_seed(self.seed)
        for option, count in (("best", self.best), ("repeats", self.repeats)):
            if count < 0:
                raise CommandError(f"--{option} {count}: give a whole number, 0 or more")
        needs.check(REFERENCE, "foveate leaderboard")
        needs.check("scipy", "foveate leaderboard, which has intervals and tests,")

    def _check_shown(self) -> None:
        for name, flag, _, default in options(Board):
            if name not in ("out", "source", "overwrite") and getattr(self, name) != default:
                raise CommandError(
                    f"--from shows what was measured before: it takes --out, --overwrite and --json, and not {flag}"
                )
        check_once(**{"from": self.source})
        outputs.check_new("out", self.out / PAGE, self.overwrite)
