"""What ``foveate leaderboard`` can be asked for: its options, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from foveate.extras import REFERENCE
from foveate.lab import checks, completion, needs, outputs, words
from foveate.lab.checks import check_at_least_1
from foveate.lab.evaluation.request import (
    TRAINED,
    Methods,
    MethodsAsJson,
    OptionsOfMethods,
    Plan,
    Questions,
    TasksOfBenchmark,
)
from foveate.lab.terminal import CommandError, check_once
from foveate.lab.typed import (
    BUDGETS,
    MACHINE,
    METHODS,
    OUTPUT,
    QUESTIONS,
    Model,
    Overwrite,
    adapter_option,
    options,
    out_option,
    seed_option,
)

PAGE = "leaderboard.html"


@dataclass(frozen=True)
class Board:
    """What ``foveate leaderboard`` is asked for."""

    out: Annotated[
        Path,
        out_option("Folder for answers, results.json and the page; a run that was stopped goes on there."),
    ] = Path("leaderboard-output")
    source: Annotated[
        tuple[Path, ...],
        Option(
            "--from",
            help="Measure nothing: show what is in this folder, or in this results.json; repeatable.",
            rich_help_panel=OUTPUT,
        ),
    ] = ()
    model: Model = "reference"
    methods: Methods = ()
    options: OptionsOfMethods = ()
    described: MethodsAsJson = ()
    adapters: Annotated[tuple[str, ...], adapter_option(f"{TRAINED}; repeatable.")] = ()
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
    per_task: Annotated[
        int, Option(help="How many questions of each task the first round asks.", rich_help_panel=QUESTIONS)
    ] = 10
    more: Annotated[
        int,
        Option(
            help="How many times as many new questions the second round asks as the first.",
            rich_help_panel=QUESTIONS,
        ),
    ] = 2
    seed: Annotated[int, seed_option("Another seed asks other questions; this is the first round's.")] = 0
    best: Annotated[
        int,
        Option(
            help="How many methods go on to the second round and are timed, beside the controls; 0: none.",
            rich_help_panel=METHODS,
        ),
    ] = 8
    shape: Annotated[
        str,
        Option(
            help="The model that is timed: random weights in this shape.",
            rich_help_panel=MACHINE,
            autocompletion=completion.among(*checks.SHAPES),
        ),
    ] = "small-qwen2.5-vl"
    tokens: Annotated[int, Option(help="Visual tokens of the call that is timed.", rich_help_panel=QUESTIONS)] = 256
    repeats: Annotated[int, Option(help="How many rounds are timed; 0: none.", rich_help_panel=QUESTIONS)] = 3
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
            checks.check_all(self._check_shown, _check_scipy)
            return
        needs.check(REFERENCE, "foveate leaderboard")
        checks.check_all(
            lambda: outputs.check_made(self.out, self.overwrite, (outputs.JSON, PAGE)),
            lambda: words.check_many(self.methods, self.options, self.described, checks.BOUNDS),
            lambda: check_once(
                method=self.methods, option=self.options, adapter=self.adapters, flops=self.flops, kv=self.kv
            ),
            lambda: Questions(self.tasks, self.per_task, (self.seed,)).check(),
            *(partial(checks.check_budgets, budgets, by) for by, budgets in self.budgets.items()),
            self._check_spending,
            lambda: checks.check_model(self.model),
            lambda: checks.check_shape(self.shape),
            *(partial(checks.check_trained, adapter) for adapter in self.adapters),
            *(partial(check_at_least_1, *each) for each in (("more", self.more), ("tokens", self.tokens))),
            *(partial(_check_count, *each) for each in (("best", self.best), ("repeats", self.repeats))),
            _check_scipy,
        )

    def says(self) -> str:
        """What is asked, for a person who waits: nothing has been loaded yet."""
        who = ", ".join(self.methods) or ("the methods given" if self.described else "all methods that fit")
        shares = {by: ", ".join(f"{share:g}" for share in some) for by, some in self.budgets.items() if some}
        budgets = " and ".join(f"{some} of the {checks.COUNTED[by]}" for by, some in shares.items())
        first = Questions(self.tasks, self.per_task).says()
        said = f"first round: {first} to {who}, the controls, the oracles and the stock model, at {budgets}"
        if not self.best:
            return said
        second = Questions(self.tasks, self.per_task * self.more).says()
        timed = "; then their times, which the plan leaves out" if self.repeats else ""
        return f"{said}\nsecond round: {second} more to the best {self.best} and the controls{timed}"

    def _check_spending(self) -> None:
        if not (self.flops or self.kv):
            raise CommandError("say what methods may spend: --flops 0.5 or --kv 0.5, as often as you like")

    def _check_shown(self) -> None:
        for name, flag, _, default in options(Board):
            if name not in ("out", "source", "overwrite") and getattr(self, name) != default:
                raise CommandError(
                    f"--from shows what was measured before: it takes --out, --overwrite and --json, and not {flag}"
                )
        check_once(**{"from": self.source})
        outputs.check_new("out", self.out / PAGE, self.overwrite)


def _check_scipy() -> None:
    needs.check("scipy", "foveate leaderboard, which has intervals and tests,")


def _check_count(option: str, count: int) -> None:
    if count < 0:
        raise CommandError(f"--{option} {count}: give a whole number, 0 or more")
