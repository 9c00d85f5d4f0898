"""A method from command-line words: ``--method fastv --keep 0.3 --option layer=3``."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.errors import ConfigError
from foveate.lab.terminal import CommandError, check_once
from foveate.method import Composed, Method
from foveate.methods import method_class, method_from_json
from foveate.serialise import from_json, options_of


def method_from_words(
    name: str | None, keep: float | None, assignments: Sequence[str], described: str | None
) -> Method:
    """Exactly one of ``name`` and ``described`` (JSON, or a file of it) says what the method is.

    Args:
        name: a method, or several joined by ``+``.
        keep: of the method, or of the whole sum.
        assignments: ``option=value``; in a sum, ``method.option=value``.
        described: what `Method.to_json` wrote.
    """
    if (name is None) == (described is None):
        raise CommandError("say which method: either --method NAME or --method-json FILE|JSON (see `foveate methods`)")
    if described is not None:
        if keep is not None or assignments:
            raise CommandError("--keep and --option belong to --method: write them into the JSON of --method-json")
        return method_from_json(_text(described))
    check_once(option=assignments)
    names = [part.strip() for part in str(name).split("+")]
    classes = [method_class(part) for part in names]
    of_all = [word for word in assignments if word.partition("=")[0].strip() == "keep"]
    if keep is not None and of_all:
        raise CommandError("keep is given twice: say --keep once, or --option keep=...")
    options: list[dict[str, Any]] = [{} for _ in classes]
    whole: dict[str, Any] = {} if keep is None else {"keep": keep}
    for assignment in assignments:
        if assignment in of_all:
            whole |= assigned(Composed, [assignment])
            continue
        part, option, value = _split(assignment, names)
        options[part][option] = _value(value, options_of(classes[part]).get(option, (None, None))[0])
    if len(classes) == 1:
        return classes[0].from_options({**options[0], **whole})
    return Composed(tuple(cls.from_options(given) for cls, given in zip(classes, options)), **whole)


def options_by_method(names: Sequence[str], assignments: Sequence[str]) -> list[list[str]]:
    """Which of ``assignments`` belong to each of several methods or sums, as `method_from_words` wants them.

    Args:
        names: methods, or sums joined by ``+``; each once.
        assignments: ``option=value`` where there is one of them, ``method.option=value`` where there are several.
    """
    unused = list(assignments)
    found: list[list[str]] = []
    for name in names:
        parts = [part.strip() for part in name.split("+")]
        own: list[str] = []
        for word in assignments:
            part, dot, _ = word.partition("=")[0].strip().partition(".")
            if dot and part in parts:
                own.append(word if len(parts) > 1 else word.partition(".")[2])
            elif not dot and len(names) == 1:
                own.append(word)
            else:
                continue
            if word in unused:
                unused.remove(word)
        found.append(own)
    if unused:
        raise CommandError(
            f"--option {unused[0]!r} belongs to no method that is asked for: with several, name one, "
            "e.g. --option fastv.layer=3"
        )
    return found


def words_of(options: Mapping[str, Any]) -> list[str]:
    """``{"keep": 0.3, "adsc.keep": 0.2}`` -> ``["keep=0.3", "adsc.keep=0.2"]``."""
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]


def assigned(cls: type, assignments: Sequence[str]) -> dict[str, Any]:
    """``["seed=3"]`` -> ``{"seed": 3}``, read as the types of a dataclass's fields suggest."""
    found = {}
    for assignment in assignments:
        _, name, value = _split(assignment, [""])
        found[name] = _value(value, options_of(cls).get(name, (None, None))[0])
    return found


def _split(assignment: str, names: Sequence[str]) -> tuple[int, str, str]:
    """Which part, which option, what value."""
    option, equals, value = assignment.partition("=")
    option = option.strip()
    if not equals or not option:
        raise CommandError(f"--option {assignment!r} is not name=value")
    if len(names) == 1:
        return 0, option, value.strip()
    part, dot, option = option.partition(".")
    if not dot or names.count(part) != 1:
        raise ConfigError(
            f"{assignment!r} could belong to any method of the sum: name one, e.g. "
            f"--option {names[0]}.{option or part}=..."
        )
    return names.index(part), option, value.strip()


def _value(text: str, hint: Any) -> Any:
    """Text as the option's type suggests; what does not fit stays text, and the method will say what it wants."""
    is_list = any(typing.get_origin(kind) is tuple for kind in (hint, *typing.get_args(hint)))
    try:
        return from_json(f"[{text}]" if is_list and not text.startswith("[") else text)
    except ConfigError:
        return text


def _text(described: str) -> str:
    """JSON as given, or the content of the file of that name."""
    if described.lstrip().startswith("{"):
        return described
    path = Path(described)
    try:
        if not path.is_file():
            raise CommandError(f"--method-json {described!r} is neither a file nor a JSON object")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {described}: {error}") from None
