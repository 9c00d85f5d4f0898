"""Commands as they are typed: options that several have, and dataclasses whose fields are the options of one."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
Model = Annotated[str, typer.Option(help="A folder, a hub id, 'reference' or 'reference-llava'.")]
OneMethod = Annotated[str | None, typer.Option(help="Its name; 'ipcv+adsc' for both at once.")]
Keep = Annotated[float | None, typer.Option(help="Share of visual tokens per decoder layer, of a method or a sum.")]
OptionsOfOne = Annotated[list[str] | None, typer.Option(help="name=value, repeatable; method.name=value in a sum.")]
OneAsJson = Annotated[str | None, typer.Option(help="The method as JSON, or a file of it.")]
OptionsOfMany = Annotated[
    list[str] | None, typer.Option(help="name=value, repeatable; method.name=value where there are several.")
]
ManyAsJson = Annotated[list[str] | None, typer.Option(help="A method as JSON, or a file of it; repeatable.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Attn = Annotated[str | None, typer.Option(help="Attention implementation: sdpa, eager, flash_attention_2 ...")]

R = TypeVar("R")


def options(kind: type) -> Iterator[tuple[str, str, Any, Any]]:
    """Of every field that is an option: its name, the flag, the type and the default."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, *more = get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else (None,)
        for info in more:
            given = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
            default = None if field.default is MISSING else field.default
            yield field.name, given[0] if given else f"--{field.name.replace('_', '-')}", hint, default


def with_options_of(kind: type[R]) -> Callable[[Callable[[R, bool], None]], Callable[..., None]]:
    """Make a function of a request, and of whether JSON is wanted, a command for `typer`."""
    hints, parameters = get_type_hints(kind, include_extras=True), list[inspect.Parameter]()
    for name, _, hint, default in options(kind):
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
    """The command line that repeats a request, but for its folder; what is usual needs no words."""
    found = shlex.split(words)
    for name, flag, _, default in options(type(request)):
        value = getattr(request, name)
        if name == "out" or value == default:
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
