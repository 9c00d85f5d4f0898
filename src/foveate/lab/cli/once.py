"""A command that loses nothing of what it is told, and says what is wrong with it in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from foveate.lab.terminal import CommandError


class Once(TyperCommand):
    """A command that refuses an option given twice which takes one value: the parser would take the last, without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # the tab key asks
            return super().parse_args(ctx, args)
        try:
            _, _, said = self.make_parser(ctx).parse_args(args=list(args))
            _check_once(said)
            return super().parse_args(ctx, args)
        except Exception as error:
            if not hasattr(error, "format_message"):  # of click, wherever this version of typer has it from
                raise
            raise CommandError(f"{error.format_message().rstrip('.')} (see `{ctx.command_path} --help`)") from None


def _check_once(said: Sequence[Any]) -> None:
    """Raise `CommandError` for options that are there more often than they count."""
    for option in said:
        if said.count(option) > 1 and not getattr(option, "multiple", True) and not getattr(option, "is_flag", False):
            flag = next(word for word in option.opts if word.startswith("--"))
            both = ": a sum, such as luvc+tome, is several methods at once" if flag == "--method" else ""
            raise CommandError(f"{flag} is given {said.count(option)} times, and takes one{both}")
