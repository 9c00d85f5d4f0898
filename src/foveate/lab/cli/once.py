"""Commands that lose nothing of what they are told, and say what is wrong with it in a sentence."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from foveate.errors import nearest, shown
from foveate.lab import checks, completion
from foveate.lab.terminal import CommandError


def _ends(*kinds: str) -> Callable[[str], bool]:
    return lambda word: word.lower().endswith(kinds)


#: What a word without an option was meant for, by its form, where the command has such an option.
MEANT: dict[str, Callable[[str], bool]] = {
    "--image": _ends(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "--data": _ends(".jsonl", ".json", ".parquet"),
    "--model": lambda word: word in checks.REFERENCES or word.count("/") == 1,
    "--method": lambda word: all(part in completion.names_of_methods() for part in word.split("+")),
    "--prompt": lambda word: " " in word or word.endswith("?"),
    "--inspect": str.isidentifier,
}


class Once(TyperCommand):
    """A command that refuses an option given twice which takes one value: the parser would take the last, without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # the tab key asks
            return super().parse_args(ctx, args)
        values: Mapping[str, Any] = {}
        rest: Sequence[str] = ()
        try:
            values, rest, said = self.make_parser(ctx).parse_args(args=list(args))
            _check_once(said)
            if rest and not ctx.allow_extra_args:
                raise _of_extra_words(rest, values, self)
            return super().parse_args(ctx, args)
        except CommandError as error:
            raise CommandError(f"{error} (see `{ctx.command_path} --help`)") from None
        except Exception as error:
            raise _in_a_sentence(error, ctx, values) from None


class Commands(TyperGroup):
    """Several commands under one name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            raise _in_a_sentence(error, ctx, {}) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not ctx.resilient_parsing:
            raise CommandError(
                f"there is no command {shown(args[0])}{nearest(args[0], known)}; there are {', '.join(known)} "
                f"(see `{ctx.command_path} --help`)"
            )
        return super().resolve_command(ctx, args)


def _check_once(said: Sequence[Any]) -> None:
    """Raise `CommandError` for options that are there more often than they count."""
    for option in said:
        if said.count(option) > 1 and not getattr(option, "multiple", True) and not getattr(option, "is_flag", False):
            both = ": a sum, such as luvc+tome, is several methods at once" if _flag(option) == "--method" else ""
            raise CommandError(f"{_flag(option)} is given {said.count(option)} times, and takes one{both}")


def _of_extra_words(words: Sequence[str], values: Mapping[str, Any], command: Any) -> CommandError:
    """What to say of words that belong to no option: which ones they were meant for, where their form tells that."""
    known = {word for option in command.params for word in option.opts}
    told, others = [], []
    for word in words:
        flag = next((flag for flag, fits in MEANT.items() if flag in known and fits(word)), None)
        told += [f"{flag} {shlex.quote(word)}"] if flag else []
        others += [] if flag else [word]
    if not told:
        return CommandError(f"{' '.join(others)!r} belongs to no option: put what has spaces in it in quotes")
    if others:
        text = shlex.quote(" ".join(others))
        told.append(f"--prompt {text}" if "--prompt" in known and not values.get("prompt") else text)
    return CommandError(f"{shown(words[0])} belongs to no option: say {' '.join(told)}")


def _in_a_sentence(error: Exception, ctx: Any, values: Mapping[str, Any]) -> Exception:
    """What the parser finds wrong with the words of a command, said as we say it; any other error is as it was.

    Its errors are known by the names of their classes, as some versions of typer have them from click and some from themselves.
    """
    kind = type(error).__name__
    say = _SENTENCES.get(kind) or (_of_words if hasattr(error, "format_message") else None)
    if say is None or kind == "NoArgsIsHelpError":
        return error
    return CommandError(f"{say(error, ctx, values)} (see `{ctx.command_path} --help`)")


def _of_a_value(error: Any, ctx: Any, values: Mapping[str, Any]) -> str:
    """A value of the wrong type."""
    if error.param is None:
        return _of_words(error, ctx, values)
    given = values.get(error.param.name)
    whole = "integer" in error.message
    if given is None or not (whole or "number" in error.message or "float" in error.message):
        return f"{_flag(error.param)}: {error.message.rstrip('.')}"
    every = list(given) if isinstance(given, (list, tuple)) else [given]
    wrong = next((value for value in every if not _is(int if whole else float, value)), every[0])
    wanted = "a whole number, such as 16" if whole else "a number, such as 0.5"
    return f"{_flag(error.param)} {shown(wrong)}: give {wanted}"


def _of_a_missing_one(error: Any, ctx: Any, values: Mapping[str, Any]) -> str:
    says = (getattr(error.param, "help", None) or "").rstrip(".")
    return f"{_flag(error.param)} is missing{f': {says[:1].lower()}{says[1:]}' if says else ''}"


def _of_no_option(error: Any, ctx: Any, values: Mapping[str, Any]) -> str:
    if isinstance(ctx.command, Commands):  # `foveate eval --method fastv`
        commands = ", ".join(ctx.command.list_commands(ctx))
        return f"there is no option {error.option_name} here: options come after one of {commands}"
    known = [word for option in ctx.command.params for word in option.opts]
    return f"there is no option {error.option_name}{nearest(error.option_name, known)}"


def _of_an_option(error: Any, ctx: Any, values: Mapping[str, Any]) -> str:
    if "does not take" in error.message:
        return f"{error.option_name} takes no value: write it alone"
    return f"{error.option_name} needs a value after it"


def _of_words(error: Any, ctx: Any, values: Mapping[str, Any]) -> str:
    """Whatever else is wrong."""
    return str(error.format_message().rstrip("."))


_SENTENCES: dict[str, Callable[[Any, Any, Mapping[str, Any]], str]] = {
    "BadParameter": _of_a_value,
    "MissingParameter": _of_a_missing_one,
    "NoSuchOption": _of_no_option,
    "BadOptionUsage": _of_an_option,
}


def _flag(option: Any) -> str:
    """The long name of an option; that of an argument in capitals."""
    return next((word for word in option.opts if word.startswith("--")), str(option.name).upper())


def _is(kind: Callable[[str], object], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
