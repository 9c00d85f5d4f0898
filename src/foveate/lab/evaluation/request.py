"""What an evaluation can be asked for: the options of ``foveate eval`` and ``foveate tune``, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from typer import Option

from foveate.extras import REFERENCE
from foveate.lab import checks, completion, needs, outputs, prompting, records, words
from foveate.lab.checks import check_at_least_1
from foveate.lab.completion import among
from foveate.lab.terminal import CommandError, check_once
from foveate.lab.typed import (
    BUDGETS,
    METHODS,
    OUTPUT,
    QUESTIONS,
    Attn,
    BatchSize,
    Device,
    Dtype,
    Model,
    NewTokens,
    OneMethod,
    Overwrite,
)

Out: TypeAlias = Annotated[
    Path,
    Option("--out", "-o", help="Folder for answers and report; a run stopped there goes on.", rich_help_panel=OUTPUT),
]
Adapter: TypeAlias = Annotated[
    str | None,
    Option(
        help="Folder or hub id of what `foveate train` wrote for this model: weights and method.",
        rich_help_panel=METHODS,
        autocompletion=completion.a_folder,
    ),
]
By: TypeAlias = Annotated[
    str,
    Option(
        help="What a budget counts: tokens, flops or kv.",
        rich_help_panel=BUDGETS,
        autocompletion=among(*checks.COUNTED),
    ),
]
OptionsOfMethods: TypeAlias = Annotated[
    tuple[str, ...],
    Option(
        "--option",
        help="An option of a method, such as layer=3; repeatable. Where there are several, fastv.layer=3.",
        rich_help_panel=METHODS,
        autocompletion=completion.an_option,
    ),
]
MethodsAsJson: TypeAlias = Annotated[
    tuple[str, ...],
    Option("--method-json", help="A method as JSON, or a file of it; repeatable.", rich_help_panel=METHODS),
]
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
    Option("--plan", help="Say what would be asked and how long it takes; ask no more.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True)
class Contest:
    """Which methods are compared with the stock model, and at what cost."""

    out: Out = Path("eval-output")
    model: Model = "reference"
    adapter: Adapter = None
    methods: Annotated[
        tuple[str, ...],
        Option(
            "--method",
            "-M",
            help="A method, a sum, or dense, blind, oracle, antioracle; repeatable.",
            show_default="all that fit",
            rich_help_panel=METHODS,
            autocompletion=completion.a_method(*checks.BOUNDS),
        ),
    ] = ()
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
        Option("--as-is", help="No budgets: every method as its options say.", rich_help_panel=BUDGETS),
    ] = False
    positions: Annotated[
        str | None,
        Option(
            help="What tokens that stay do with their position ids, for all methods: keep or renumber.",
            rich_help_panel=METHODS,
            autocompletion=among(*checks.POSITIONS),
        ),
    ] = None
    overwrite: Overwrite = False

    def check(self) -> None:
        """Raise a `FoveateError` for what is wrong with the words alone: nobody should wait for torch to hear it."""
        words.check_many(self.methods, self.options, self.described, checks.BOUNDS)
        outputs.check_folder("out", self.out)
        checks.check_choice("by", self.by, checks.COUNTED)
        if self.positions is not None:
            checks.check_choice("positions", self.positions, checks.POSITIONS)
        checks.check_budgets(self.budgets)
        check_once(budget=self.budgets, method=self.methods, option=self.options)
        if self.as_is and self.budgets:
            raise CommandError(
                "--as-is takes methods as their options say, and --budget sets them: give one of the two"
            )
        checks.check_model(self.model)
        if self.adapter is not None:
            checks.check_trained(self.adapter)
        needs.check("scipy", "foveate eval, which has intervals and tests,")


@dataclass(frozen=True)
class Questions:
    """Which questions of the reference benchmark are asked."""

    tasks: TasksOfBenchmark = ()
    per_task: Annotated[int, Option(help="Questions of each task and seed.", rich_help_panel=QUESTIONS)] = 100
    seeds: Annotated[
        tuple[int, ...],
        Option("--seed", help="Another seed asks other questions; repeatable.", rich_help_panel=QUESTIONS),
    ] = (0,)
    split: Annotated[
        str,
        Option(
            help="Of the benchmark's questions: test, validation or train.",
            rich_help_panel=QUESTIONS,
            autocompletion=among(*checks.SPLITS),
        ),
    ] = "test"

    def check(self) -> None:
        check_once(seed=self.seeds, task=self.tasks)
        check_at_least_1("per-task", self.per_task)
        for task in self.tasks:
            checks.check_choice("task", task, checks.TASKS)
        checks.check_choice("split", self.split, checks.SPLITS)
        for seed in self.seeds:
            checks.check_seed(seed)


@dataclass(frozen=True)
class Running:
    """How a model runs."""

    batch_size: BatchSize = 8
    dtype: Dtype = "auto"
    device: Device = "auto"
    attn: Attn = None

    def check(self) -> None:
        checks.check_dtype(self.dtype)
        checks.check_device(self.device)
        check_at_least_1("batch-size", self.batch_size)


@dataclass(frozen=True)
class Own:
    """Images and prompts of one's own; without any, questions of the reference benchmark."""

    data: Annotated[
        Path | None,
        Option(
            "--data",
            "-d",
            help='File of lines like {"image": "cat.jpg", "prompt": "What is it?"}.',
            rich_help_panel=QUESTIONS,
        ),
    ] = None
    images: Annotated[
        tuple[Path, ...],
        Option("--image", "-i", help="An image to ask about; repeatable, with --prompt.", rich_help_panel=QUESTIONS),
    ] = ()
    prompts: Annotated[
        tuple[str, ...],
        Option(
            "--prompt", "-p", help="One for all images, one for each, or several about one.", rich_help_panel=QUESTIONS
        ),
    ] = ()
    samples: Annotated[
        int | None,
        Option(help="Prompts to use, drawn by the seed.", show_default="all", rich_help_panel=QUESTIONS),
    ] = None
    new_tokens: NewTokens = 32

    @property
    def given(self) -> bool:
        """Whether there is anything of one's own."""
        return self.data is not None or bool(self.images or self.prompts)

    def check(self) -> None:
        if self.data is not None and (self.images or self.prompts):
            raise CommandError("--data has images and prompts: leave out --image and --prompt")
        check_at_least_1("new-tokens", self.new_tokens)
        check_at_least_1("samples", self.samples)
        checks.check_images_and_prompts(self.images, self.prompts)
        for prompt in self.prompts:
            prompting.check(prompt)
        for image in self.images:
            prompting.open_image(image)
        if self.data is not None:
            records.check(self.data)


@dataclass(frozen=True)
class Reference(Questions, Contest):
    """What ``foveate eval reference`` is asked for."""

    best_of: Annotated[
        Path | None,
        Option(
            "--best-of",
            help="A results.json of this command: its best methods, and the controls.",
            rich_help_panel=METHODS,
        ),
    ] = None
    best: Annotated[int, Option("--best", help="With --best-of: how many methods.", rich_help_panel=METHODS)] = 8
    plan: Plan = False

    def check(self) -> None:
        Contest.check(self)
        Questions.check(self)
        check_at_least_1("best", self.best)
        if self.best_of is not None and not self.best_of.is_file():
            raise CommandError(f"--best-of {str(self.best_of)!r}: there is no such file")
        needs.check(REFERENCE, "foveate eval reference")


@dataclass(frozen=True)
class Tasks(Running, Contest):
    """What ``foveate eval tasks`` is asked for."""

    methods: Annotated[
        tuple[str, ...],
        Option(
            "--method",
            "-M",
            help="A method, or a sum; repeatable.",
            rich_help_panel=METHODS,
            autocompletion=completion.a_method(*checks.BOUNDS),
        ),
    ] = ()
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
        int | None, Option(help="Questions of each task.", show_default="all", rich_help_panel=QUESTIONS)
    ] = None
    include: Annotated[
        Path | None, Option("--include-path", help="Folder of further tasks.", rich_help_panel=QUESTIONS)
    ] = None

    def check(self) -> None:
        if not self.tasks:
            raise CommandError("say which benchmarks: --task mme, as often as you like")
        if not (self.methods or self.described or self.adapter):
            raise CommandError("say what to measure: --method NAME, as often as you like (see `foveate methods`)")
        Contest.check(self)
        Running.check(self)
        check_once(task=self.tasks)
        check_at_least_1("per-task", self.per_task)
        if self.include is not None and not self.include.is_dir():
            raise CommandError(f"--include-path {str(self.include)!r}: there is no such folder")
        needs.check("lmms_eval", "a public benchmark")


@dataclass(frozen=True)
class Fidelity(Own, Questions, Running, Contest):
    """What ``foveate eval fidelity`` is asked for."""

    def check(self) -> None:
        for part in (Contest, Questions, Running, Own):
            part.check(self)


@dataclass(frozen=True)
class Search:
    """Where a search begins, and what it looks for: the cheapest setting within ``max_kl``, or the one of least KL for
    ``budget``."""

    out: Annotated[
        Path,
        Option(
            "--out",
            "-o",
            help="Folder for method.json, trials and report; a run stopped there goes on.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("tune-output")
    model: Model = "reference"
    adapter: Adapter = None
    method: OneMethod = None
    options: Annotated[
        tuple[str, ...],
        Option(
            "--option",
            help="An option of the method, such as layer=3; repeatable. In a sum, fastv.layer=3.",
            rich_help_panel=METHODS,
            autocompletion=completion.an_option,
        ),
    ] = ()
    described: Annotated[
        str | None, Option("--method-json", help="The method as JSON, or a file of it.", rich_help_panel=METHODS)
    ] = None
    max_kl: Annotated[
        float | None,
        Option(
            help="Find the cheapest setting that diverges no more than this, in nats: 0.01.", rich_help_panel=BUDGETS
        ),
    ] = None
    budget: Annotated[
        float | None,
        Option(
            help="Or the most faithful setting for this share of the stock model's cost: 0.5.", rich_help_panel=BUDGETS
        ),
    ] = None
    by: By = "flops"
    search: Annotated[
        str,
        Option(
            help="auto, dial, greedy or layers (for --max-kl), sigmoid or options (--budget).",
            rich_help_panel=BUDGETS,
            autocompletion=among(*checks.SEARCHES),
        ),
    ] = "auto"
    trials: Annotated[int, Option(help="Settings to judge at most.", rich_help_panel=BUDGETS)] = 100
    held_out: Annotated[
        float, Option(help="Share of the prompts that the search does not see.", rich_help_panel=QUESTIONS)
    ] = 0.5
    seed: Annotated[int, Option(help="Draws the prompts, and those held out.", rich_help_panel=QUESTIONS)] = 0
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Tune(Own, Running, Search):
    """What ``foveate tune`` is asked for."""

    new_tokens: NewTokens = 16
    samples: Annotated[
        int | None,
        Option(help="Prompts to use.", show_default="all; 80 of the benchmark", rich_help_panel=QUESTIONS),
    ] = None

    def check(self) -> None:
        words.check_one(self.method, None, self.options, self.described)
        checks.check_choice("by", self.by, checks.COUNTED)
        checks.check_choice("search", self.search, checks.SEARCHES)
        outputs.check_folder("out", self.out)
        if (self.max_kl is None) == (self.budget is None):
            raise CommandError(
                "say what to look for: either --max-kl 0.01, the most divergence, or --budget 0.5, the most cost"
            )
        if self.max_kl is not None and not 0 < self.max_kl < float("inf"):
            raise CommandError(f"--max-kl {self.max_kl}: give nats above 0, e.g. 0.01")
        if self.budget is not None and not 0 < self.budget < 1:
            raise CommandError(
                f"--budget {self.budget}: give a share of what the stock model spends, above 0 and below 1"
            )
        by_kl = self.max_kl is not None
        if self.search in (("sigmoid", "options") if by_kl else ("dial", "greedy", "layers")):
            goal, other = ("--max-kl", "dial, greedy or layers") if by_kl else ("--budget", "sigmoid or options")
            raise CommandError(f"--search {self.search} does not look for {goal}: choose {other}, or auto")
        check_at_least_1("trials", self.trials)
        if not 0 < self.held_out < 1:
            raise CommandError(f"--held-out {self.held_out}: give a share of the prompts, above 0 and below 1")
        checks.check_model(self.model)
        Running.check(self)
        Own.check(self)
