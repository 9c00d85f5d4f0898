"""Commands as they are typed: options that several have, and dataclasses whose fields are the options of one.

One word stands for one thing in every command, and so does a letter: `Model`, `OneMethod`, ... are declared here once.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from typer import Context, Option

from foveate.lab import checks, completion
from foveate.lab.completion import among

#: The parts of ``--help``, in this order.
QUESTIONS, METHODS, BUDGETS, MACHINE, OUTPUT = "Questions", "Methods", "Budgets", "Model and machine", "Output"
PANELS = (QUESTIONS, METHODS, BUDGETS, MACHINE, OUTPUT)


Json = Annotated[bool, Option("--json", help="Print JSON on stdout and nothing else there.", rich_help_panel=OUTPUT)]
Overwrite = Annotated[
    bool,
    Option("--overwrite", help="Begin anew, and replace what is there.", rich_help_panel=OUTPUT),
]
Model = Annotated[
    str,
    Option(
        "--model",
        "-m",
        help="A folder, a hub id, 'reference', 'reference-llava' or 'reference-smollm2'.",
        rich_help_panel=MACHINE,
        autocompletion=completion.a_model,
    ),
]


def method_option(which: str, *besides: str, default: str | bool = True) -> Any:
    """``--method``, which may also name what stands ``besides`` the methods."""
    says, complete = f"A method, {which}.", completion.a_method(*besides)
    return Option("--method", "-M", help=says, show_default=default, rich_help_panel=METHODS, autocompletion=complete)


def adapter_option(says: str) -> Any:
    """``--adapter``."""
    return Option("--adapter", help=says, rich_help_panel=METHODS, autocompletion=completion.a_folder)


def seed_option(decides: str, panel: str = QUESTIONS) -> Any:
    """``--seed``."""
    return Option("--seed", help=decides, rich_help_panel=panel)


def image_option(says: str, default: str | bool = True) -> Any:
    """``--image``."""
    return Option("--image", "-i", help=says, show_default=default, rich_help_panel=QUESTIONS)


def prompt_option(says: str) -> Any:
    """``--prompt``."""
    return Option("--prompt", "-p", help=says, rich_help_panel=QUESTIONS)


def data_option(says: str) -> Any:
    """``--data``, a file of many questions."""
    return Option("--data", "-d", help=says, rich_help_panel=QUESTIONS)


def keep_option(says: str, default: str | bool = True) -> Any:
    """``--keep``."""
    return Option("--keep", "-k", help=says, show_default=default, rich_help_panel=METHODS)


def out_option(says: str, default: str | bool = True) -> Any:
    """``--out``, a file or a folder."""
    return Option("--out", "-o", help=says, show_default=default, rich_help_panel=OUTPUT)


_FOR_EXAMPLE = "such as luvc (`foveate methods` lists all)"
OneMethod = Annotated[str | None, method_option(f"{_FOR_EXAMPLE}; 'ipcv+adsc' is both at once")]
SUMS_TOO = f"{_FOR_EXAMPLE}, or a sum, such as 'ipcv+adsc'; repeatable"
Keep = Annotated[
    float | None,
    keep_option(
        "Share of the visual tokens that stays, on average over decoder layers; 0.5 is half. Of a sum: after all parts.",
        "the method's own",
    ),
]
OPTION_OF_ONE = Option(
    "--option",
    help="An option of the method, such as layer=3 (the first layer is 0); repeatable. In a sum, say whose: fastv.layer=3.",
    rich_help_panel=METHODS,
    autocompletion=completion.an_option,
)
OptionsOfOne = Annotated[list[str] | None, OPTION_OF_ONE]
ONE_AS_JSON = Option("--method-json", help="The method as JSON, or a file with it.", rich_help_panel=METHODS)
OneAsJson = Annotated[str | None, ONE_AS_JSON]
OPTION_OF_MANY = Option(
    "--option",
    help="An option of a method, such as layer=3 (the first layer is 0); repeatable. Of several, say whose: fastv.layer=3.",
    rich_help_panel=METHODS,
    autocompletion=completion.an_option,
)
OptionsOfMany = Annotated[list[str] | None, OPTION_OF_MANY]
MANY_AS_JSON = Option("--method-json", help="A method as JSON, or a file with it; repeatable.", rich_help_panel=METHODS)
ManyAsJson = Annotated[list[str] | None, MANY_AS_JSON]
Images = Annotated[list[Path] | None, image_option("An image file; repeatable.")]
Dtype = Annotated[
    str,
    Option(
        help="auto, float32, bfloat16 or float16.",
        rich_help_panel=MACHINE,
        autocompletion=among("auto", *checks.DTYPES),
    ),
]
Device = Annotated[
    str,
    Option(
        help="auto, cpu, cuda, cuda:1, mps ...",
        rich_help_panel=MACHINE,
        autocompletion=among("auto", "cpu", "cuda", "mps"),
    ),
]
Attn = Annotated[
    str | None,
    Option(
        help="Attention implementation: sdpa, eager, flash_attention_2 ...",
        rich_help_panel=MACHINE,
        autocompletion=among(*checks.ATTENTIONS),
    ),
]
NewTokens = Annotated[
    int, Option("--new-tokens", "-n", help="The longest answer, in tokens.", rich_help_panel=QUESTIONS)
]
BatchSize = Annotated[
    int, Option("--batch-size", "-b", help="How many questions are asked together.", rich_help_panel=MACHINE)
]

R = TypeVar("R")


def given(context: Context) -> list[str]:
    """The flags of the options that were given to a command, whatever they say."""
    said = [option for option in context.command.params if _is_said(context, option)]
    return [next((word for word in option.opts if word.startswith("--")), str(option.name)) for option in said]


def _is_said(context: Context, option: Any) -> bool:
    source = context.get_parameter_source(option.name)
    return source is not None and source.name == "COMMANDLINE"


def options(kind: type) -> Iterator[tuple[str, str, Any, Any]]:
    """Of every field that is an option: its name, the flag, the type and the default."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, *more = get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else (None,)
        for info in more:
            words = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
            given = [word for word in words if word.startswith("--")]
            default = None if field.default is MISSING else field.default
            yield field.name, given[0] if given else f"--{field.name.replace('_', '-')}", hint, default


def with_options_of(kind: type[R]) -> Callable[[Callable[[R, bool], None]], Callable[..., None]]:
    """Make a function of a request, and of whether JSON is wanted, a command for `typer`."""
    hints, parameters = get_type_hints(kind, include_extras=True), list[inspect.Parameter]()
    for name, _, hint, default in sorted(options(kind), key=lambda option: _panel(hints[option[0]])):
        annotation = hints[name]
        if get_origin(hint) is tuple:  # typer repeats an option for a list
            parts: Any = (list[get_args(hint)[0]] | None, *get_args(annotation)[1:])  # type: ignore[misc]
            annotation, default = Annotated[parts], None
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    parameters.append(inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json))

    def made(run: Callable[[R, bool], None]) -> Callable[..., None]:
        def command(*, json: bool, **said: Any) -> None:
            given = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
            run(kind(**{name: value for name, value in given.items() if value is not None}), json)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {}
        command.__name__, command.__doc__ = run.__name__, run.__doc__
        return command

    return made


def command(words: str, request: Any) -> str:
    """The command line that repeats a request, but for where it writes; what is usual needs no words."""
    found = shlex.split(words)
    for name, flag, _, default in options(type(request)):
        value = getattr(request, name)
        if name in ("out", "overwrite") or value == default:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            found += [flag] if each is True else [flag, str(each)]
    return shlex.join(found)


def request(kind: type[R], words: str) -> R:
    """What a command asks for; `command` the other way round."""
    known = {flag: (name, hint) for name, flag, hint, _ in options(kind)}
    found: dict[str, Any] = {}
    name, hint = "", None
    for word in shlex.split(words):
        if word in known:
            name, hint = known[word]
            if hint is bool:
                found[name] = True
        elif name and get_origin(hint) is tuple:
            found[name] = (*found.get(name, ()), _kind(hint)(word))
        elif name and hint is not bool:
            found[name] = _kind(hint)(word)
    return kind(**found)


def _kind(hint: Any) -> Callable[[str], Any]:
    kind = next((each for each in get_args(hint) if each in (str, int, float, Path)), hint)
    return kind  # type: ignore[no-any-return]


def _panel(annotation: Any) -> int:
    """Which part of ``--help`` an option is in."""
    return PANELS.index(next(more.rich_help_panel for more in get_args(annotation)[1:]))
