"""``foveate serve``: the command line of ``vllm serve``, with the method in ``--additional-config``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from foveate.errors import ConfigError, FoveateError, ours_in, shown
from foveate.lab import needs
from foveate.lab.checks import REFERENCES, check_in_one_folder
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError
from foveate.method import Method
from foveate.serialise import from_json

OPTION = "--additional-config"


def words(
    model: str,
    method: Method,
    rest: Sequence[str],
    limit: float | None = None,
    profiles: Mapping[str, Method | None] | None = None,
    adaptive: Mapping[str, float] | None = None,
) -> list[str]:
    """What follows ``vllm``.

    Args:
        model: a hub id, a folder, or a shipped model (``reference``).
        method: what to serve with.
        rest: further words for ``vllm serve``. Its own ``--additional-config`` is kept, but for the key ``foveate``.
        limit: up to which budget a prompt may ask for its own; None: it may not.
        profiles: methods that it may ask for by name; None: the stock model.
        adaptive: the ``least`` that an image keeps whose budget follows from its pixels, and the ``threshold`` of their detail.
    """
    others, config = _taken(list(rest))
    if "foveate" in config:
        raise CommandError(
            f'{OPTION} has "foveate" already: leave that out, or use `vllm serve` and leave --method out'
        )
    check_in_one_folder(model)
    folder = str(needs.reference().PATHS[REFERENCES[model]]) if model in REFERENCES else model
    asked = {**method.to_dict(), **({} if limit is None else {"limit": limit})}
    if adaptive:
        asked["adaptive"] = dict(adaptive)
    if profiles:
        asked["profiles"] = {name: "none" if each is None else each.to_dict() for name, each in profiles.items()}
    return ["serve", folder, *others, OPTION, json.dumps({**config, "foveate": asked})]


def profile(word: str) -> tuple[str, Method | None]:
    """``fast=luvc,keep=0.3`` -> the name, and the method; None: ``exact=none``."""
    name, equals, spelled = word.partition("=")
    method, *options = re.split(r",(?![^\[]*\])", spelled)  # a comma in brackets is of a list
    if not equals or not name.strip() or not method.strip():
        raise CommandError(f"--profile {word!r} is not NAME=METHOD, such as fast=luvc,keep=0.3 or exact=none")
    try:
        found = (
            None if method.strip() == "none" and not options else method_from_words(method.strip(), None, options, None)
        )
    except FoveateError as error:
        raise CommandError(f"--profile {word!r}: {error}") from None
    return name.strip(), found


def serve(argv: Sequence[str]) -> None:
    """Run ``vllm`` with these `words` until it is stopped."""
    from vllm.entrypoints.cli.main import main

    sys.argv = ["vllm", *argv]
    try:
        main()
    except ValueError as error:
        found = ours_in(error)
        if found is None:
            raise
        raise CommandError(str(found)) from None


def _taken(rest: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The words without ``--additional-config``, and what it says."""
    for i, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if name != OPTION:
            continue
        if not equals and i + 1 == len(rest):
            raise CommandError(f"{OPTION} wants a JSON object")
        text, end = (value, i + 1) if equals else (rest[i + 1], i + 2)
        try:
            config = from_json(text)
        except ConfigError as error:
            raise CommandError(f"{OPTION} {shown(text)}: {error}") from None
        if not isinstance(config, dict):
            raise CommandError(f"{OPTION} {shown(text)} is not a JSON object")
        return rest[:i] + rest[end:], config
    return rest, {}
