"""What an evaluation can be asked for: the options of ``foveate eval``; other commands share some of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

from typer import Option

from foveate.extras import REFERENCE
from foveate.lab import checks, needs, outputs, prompting, records, words
from foveate.lab.checks import check_at_least_1
from foveate.lab.completion import among
from foveate.lab.terminal import CommandError, check_once
from foveate.lab.typed import (
    BUDGETS,
    MANY_AS_JSON,
    METHODS,
    OPTION_OF_MANY,
    OUTPUT,
    QUESTIONS,
    Attn,
    BatchSize,
    Device,
    Dtype,
    Model,
    NewTokens,
    Overwrite,
    adapter_option,
    data_option,
    image_option,
    method_option,
    out_option,
    prompt_option,
    seed_option,
)

Out: TypeAlias = Annotated[
    Path,
    out_option("Folder for answers and report; a run that was stopped goes on there."),
]
Methods: TypeAlias = Annotated[
    tuple[str, ...],
    method_option("a sum, or dense, blind, oracle, antioracle; repeatable", *checks.BOUNDS, default="all that fit"),
]
TRAINED = "Folder or hub id of what `foveate train` wrote for this model"
Adapter: TypeAlias = Annotated[str | None, adapter_option(f"{TRAINED}: weights and method.")]
By: TypeAlias = Annotated[
    str,
    Option(
        help="What a budget counts: tokens, flops or kv (the KV cache).",
        rich_help_panel=BUDGETS,
        autocompletion=among(*checks.COUNTED),
    ),
]
OptionsOfMethods: TypeAlias = Annotated[tuple[str, ...], OPTION_OF_MANY]
MethodsAsJson: TypeAlias = Annotated[tuple[str, ...], MANY_AS_JSON]
TasksOfBenchmark: TypeAlias = Annotated[
    tuple[str, ...],
    Option(
        "--task",
        "-t",
        help="A task of the benchmark, such as color or read; repeatable.",
        show_default="all",
        rich_help_panel=QUESTIONS,
        autocompletion=among(*checks.TASKS),
    ),
]
Plan: TypeAlias = Annotated[
    bool,
    Option("--plan", help="Say what would be asked and about how long it takes, and stop.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True)
class Contest:
    """Which methods are compared with the stock model, and at what cost."""

    out: Out = Path("eval-output")
    model: Model = "reference"
    adapter: Adapter = None
    methods: Methods = ()
    options: OptionsOfMethods = ()
    described: MethodsAsJson = ()
    budgets: Annotated[
        tuple[float, ...],
        Option(
            "--budget",
            help="Share of what the stock model spends; repeatable.",
            show_default="five from 0.5 to 0.1",
            rich_help_panel=BUDGETS,
        ),
    ] = ()
    by: By = "tokens"
    as_is: Annotated[
        bool,
        Option("--as-is", help="No budgets: measure every method as its options say.", rich_help_panel=BUDGETS),
    ] = False
    positions: Annotated[
        str | None,
        Option(
            help="Position ids of the tokens that stay, for all methods: keep or renumber.",
            rich_help_panel=METHODS,
            autocompletion=among(*checks.POSITIONS),
        ),
    ] = None
    overwrite: Overwrite = False

    def check(self) -> None:
        """Raise a `FoveateError` for what is wrong with the words alone: nobody should wait for torch to hear it."""
        checks.check_all(
            lambda: words.check_many(self.methods, self.options, self.described, checks.BOUNDS),
            lambda: outputs.check_folder("out", self.out),
            lambda: outputs.check_made(self.out, self.overwrite),
            lambda: checks.check_choice("by", self.by, checks.COUNTED),
            lambda: checks.check_choice("positions", self.positions or "keep", checks.POSITIONS),
            lambda: checks.check_budgets(self.budgets),
            lambda: check_once(budget=self.budgets, method=self.methods, option=self.options),
            self._check_as_is,
            lambda: checks.check_model(self.model),
            *(partial(checks.check_trained, adapter) for adapter in (self.adapter,) if adapter is not None),
            lambda: needs.check("scipy", "foveate eval, which has intervals and tests,"),
        )

    def _check_as_is(self) -> None:
        if self.as_is and self.budgets:
            raise CommandError(
                "--as-is takes methods as their options say, and --budget sets them: give one of the two"
            )


def budgets_of(request: Contest) -> tuple[float, ...]:
    """What every method is set to; none: it stays as it is."""
    return () if request.as_is else request.budgets or checks.BUDGETS[request.by]


@dataclass(frozen=True)
class Questions:
    """Which questions of the reference benchmark are asked."""

    tasks: TasksOfBenchmark = ()
    per_task: Annotated[int, Option(help="How many questions of each task and seed.", rich_help_panel=QUESTIONS)] = 100
    seeds: Annotated[tuple[int, ...], seed_option("Another seed asks other questions; repeatable.")] = (0,)
    split: Annotated[
        str,
        Option(
            help="Which part of the benchmark's questions: test, validation or train.",
            rich_help_panel=QUESTIONS,
            autocompletion=among(*checks.SPLITS),
        ),
    ] = "test"

    def check(self) -> None:
        checks.check_all(
            lambda: check_once(seed=self.seeds, task=self.tasks),
            lambda: check_at_least_1("per-task", self.per_task),
            *(partial(checks.check_choice, "task", task, checks.TASKS) for task in self.tasks),
            lambda: checks.check_choice("split", self.split, checks.SPLITS),
            *(partial(checks.check_seed, seed) for seed in self.seeds),
        )

    def says(self) -> str:
        """How many questions there are."""
        tasks, seeds = len(self.tasks) or len(checks.TASKS), len(self.seeds)
        every = "of one task" if tasks == 1 else f"of each of {tasks} tasks"
        each = f"{self.per_task} {every}" + (f" and {seeds} seeds" if seeds > 1 else "")
        return f"{tasks * self.per_task * seeds:,} questions ({each})"


@dataclass(frozen=True)
class Running:
    """How a model runs."""

    batch_size: BatchSize = 8
    dtype: Dtype = "auto"
    device: Device = "auto"
    attn: Attn = None

    def check(self) -> None:
        checks.check_all(
            lambda: checks.check_dtype(self.dtype),
            lambda: checks.check_device(self.device),
            lambda: checks.check_attn(self.attn),
            lambda: check_at_least_1("batch-size", self.batch_size),
        )


@dataclass(frozen=True)
class Own:
    """Images and prompts of one's own; without any, questions of the reference benchmark."""

    data: Annotated[
        Path | None,
        data_option('File of lines like {"image": "cat.jpg", "prompt": "What is it?"}.'),
    ] = None
    images: Annotated[
        tuple[Path, ...],
        image_option("An image to ask about; repeatable, with --prompt."),
    ] = ()
    prompts: Annotated[
        tuple[str, ...],
        prompt_option("What to ask: one for all images, one for each, or several about one."),
    ] = ()
    samples: Annotated[
        int | None,
        Option(help="How many prompts are used; the seed draws them.", show_default="all", rich_help_panel=QUESTIONS),
    ] = None
    new_tokens: NewTokens = 32

    @property
    def given(self) -> bool:
        """Whether there is anything of one's own."""
        return self.data is not None or bool(self.images or self.prompts)

    def check(self) -> None:
        if self.data is not None and (self.images or self.prompts):
            raise CommandError("--data has images and prompts: leave out --image and --prompt")
        checks.check_all(
            lambda: check_at_least_1("new-tokens", self.new_tokens),
            lambda: check_at_least_1("samples", self.samples),
            lambda: checks.check_images_and_prompts(self.images, self.prompts),
            *(partial(prompting.check, prompt) for prompt in self.prompts),
            *(partial(prompting.open_image, image) for image in self.images),
            *(partial(records.questions, data) for data in (self.data,) if data is not None),
        )


@dataclass(frozen=True)
class Reference(Questions, Contest):
    """What ``foveate eval reference`` is asked for."""

    best_of: Annotated[
        Path | None,
        Option(
            "--best-of",
            help="Ask the best methods of an earlier run, given by its results.json, and the controls.",
            rich_help_panel=METHODS,
        ),
    ] = None
    best: Annotated[int, Option("--best", help="With --best-of: how many methods.", rich_help_panel=METHODS)] = 8
    plan: Plan = False

    def check(self) -> None:
        needs.check(REFERENCE, "foveate eval reference")
        checks.check_all(
            lambda: Contest.check(self),
            lambda: Questions.check(self),
            lambda: check_at_least_1("best", self.best),
            self._check_best_of,
        )

    def says(self) -> str:
        """What is asked, for a person who waits: nothing has been loaded yet."""
        shares = ", ".join(f"{budget:g}" for budget in budgets_of(self))
        at = f"at {shares} of {checks.COUNTED[self.by]}" if shares else "as their options say"
        who = ", ".join(self.methods) or (
            "the methods given" if self.described or self.adapter else "all methods that fit"
        )
        return f"{Questions.says(self)} to {who}, {at}, and to the stock model"

    def _check_best_of(self) -> None:
        if self.best_of is not None and not self.best_of.is_file():
            raise CommandError(f"--best-of {str(self.best_of)!r}: there is no such file")


@dataclass(frozen=True)
class Tasks(Running, Contest):
    """What ``foveate eval tasks`` is asked for."""

    methods: Annotated[tuple[str, ...], method_option("or a sum; repeatable", *checks.BOUNDS)] = ()
    budgets: Annotated[
        tuple[float, ...],
        Option(
            "--budget",
            help="Set methods to this share of what the stock model spends; repeatable.",
            show_default="none: as their options say",
            rich_help_panel=BUDGETS,
        ),
    ] = ()
    batch_size: BatchSize = 1
    tasks: Annotated[
        tuple[str, ...],
        Option(
            "--task",
            "-t",
            help="A task or group, as lmms-eval names it, e.g. mme; repeatable.",
            rich_help_panel=QUESTIONS,
        ),
    ] = ()
    per_task: Annotated[
        int | None, Option(help="How many questions of each task.", show_default="all", rich_help_panel=QUESTIONS)
    ] = None
    include: Annotated[
        Path | None, Option("--include-path", help="A folder with more tasks.", rich_help_panel=QUESTIONS)
    ] = None

    def check(self) -> None:
        if not self.tasks:
            raise CommandError("say which benchmarks: --task mme, as often as you like")
        if not (self.methods or self.described or self.adapter):
            raise CommandError("say what to measure: --method NAME, as often as you like (see `foveate methods`)")
        checks.check_all(
            lambda: Contest.check(self),
            lambda: Running.check(self),
            lambda: check_once(task=self.tasks),
            lambda: check_at_least_1("per-task", self.per_task),
            self._check_include,
            lambda: needs.check("lmms_eval", "a public benchmark"),
        )

    def _check_include(self) -> None:
        if self.include is not None and not self.include.is_dir():
            raise CommandError(f"--include-path {str(self.include)!r}: there is no such folder")


@dataclass(frozen=True)
class Fidelity(Own, Questions, Running, Contest):
    """What ``foveate eval fidelity`` is asked for."""

    def check(self) -> None:
        usual = Questions()
        asked = [name for name in ("tasks", "per_task", "split") if getattr(self, name) != getattr(usual, name)]
        flags = [{"tasks": "--task", "per_task": "--per-task", "split": "--split"}[name] for name in asked]
        checks.check_all(
            lambda: checks.check_left_out(
                flags, flags if self.given else (), "for the benchmark's questions, and these are yours"
            ),
            *(partial(part.check, self) for part in (Contest, Questions, Running, Own)),
        )
