"""Methods as a command line spells them: taken apart, and checked by name, option and type, before torch is imported."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import ConfigError, UnknownNameError, nearest, shown
from foveate.lab import checks, index
from foveate.lab.terminal import CommandError, check_once
from foveate.schedule import check_ratio
from foveate.serialise import build, from_json, options_of, read_text

#: What may follow a flag that takes ``name=value``.
_EXAMPLES = {"option": "layer=3", "set": "steps=500"}


@dataclass(frozen=True)
class Spelled:
    """A method, or a sum, and its options.

    Attributes:
        classes: of its parts.
        options: of each part.
        whole: of the sum; of a single method, its ``keep``.
    """

    classes: tuple[type, ...]
    options: tuple[dict[str, Any], ...]
    whole: dict[str, Any]


@dataclass(frozen=True)
class Sum:
    """What a sum can be told as a whole."""

    keep: float | None = None


def check_one(name: str | None, keep: float | None, assignments: Sequence[str], described: str | None) -> None:
    """Raise a `FoveateError` for a method that is not there, an option that it has not, or a value of another type."""
    known = _known()
    if name is None and described is None:
        raise CommandError("say which method: --method NAME or --method-json FILE|JSON (see `foveate methods`)")
    if name is not None and described is not None:
        raise CommandError("--method and --method-json both say which method: leave one of the two out")
    if described is not None:
        if keep is not None or assignments:
            raise CommandError("--keep and --option belong to --method: write them into the JSON of --method-json")
        _check_data(_data_of(described), known)
        return
    asked = spelled(str(name), keep, assignments, lambda part: _class(part, known))
    single = len(asked.classes) == 1
    for cls, options in zip(asked.classes, asked.options):
        build(cls, {**options, **asked.whole} if single else options)
    if not single:
        build(Sum, asked.whole)
    if asked.whole.get("keep") is not None:
        check_ratio("keep", asked.whole["keep"])


def check_one_or_trained(
    name: str | None, keep: float | None, assignments: Sequence[str], described: str | None, trained: str | None
) -> None:
    """`check_one`, unless the method is in a folder or on the hub with all of its options."""
    if trained is None:
        return check_one(name, keep, assignments, described)
    if name is not None or keep is not None or assignments or described is not None:
        raise CommandError(
            "--adapter has the method and its options: leave --method, --keep, --option and --method-json out"
        )
    checks.check_trained(trained)
    return None


def check_many(
    names: Sequence[str],
    assignments: Sequence[str],
    described: Sequence[str],
    others: Collection[str] = (),
    keep: float | None = None,
) -> None:
    """`check_one` for each, all with one ``keep``; ``others`` are names of what is no method and has no options."""
    known = _known()
    if keep is not None:
        check_ratio("keep", keep)
    methods = [name for name in names if name not in others]
    for name in methods:
        for part in name.split("+"):
            _class(part.strip(), known, others)
    if methods:
        for name, own in zip(methods, options_by_method(methods, assignments)):
            check_one(name, keep, own, None)
    for text in described:
        check_one(None, None, [], text)


def spelled(name: str, keep: float | None, assignments: Sequence[str], class_of: Callable[[str], type]) -> Spelled:
    """What is asked for.

    Args:
        name: a method, or several joined by ``+``.
        keep: of the method, or of the whole sum.
        assignments: ``option=value``, or, as in a sum it must be, ``method.option=value``.
        class_of: the class of a method, or a dataclass with its options.
    """
    check_once(option=assignments)
    names = [part.strip() for part in name.split("+")]
    if len(names) == 1:  # named as in a sum
        assignments = [word.removeprefix(f"{names[0]}.") for word in assignments]
    classes = [class_of(part) for part in names]
    of_all = [word for word in assignments if word.partition("=")[0].strip() == "keep"]
    if keep is not None and of_all:
        raise CommandError("keep is given twice: say --keep once, or --option keep=...")
    options: list[dict[str, Any]] = [{} for _ in classes]
    whole: dict[str, Any] = {} if keep is None else {"keep": keep}
    for assignment in assignments:
        if assignment in of_all:
            whole |= assigned(Sum, [assignment])
            continue
        part, option, value = _split(assignment, names, having=_having(assignment, classes))
        options[part][option] = _value(value, options_of(classes[part]).get(option, (None, None))[0])
    return Spelled(tuple(classes), tuple(options), whole)


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


def assigned(cls: type, assignments: Sequence[str], flag: str = "option") -> dict[str, Any]:
    """``["seed=3"]`` -> ``{"seed": 3}``, read as the types of a dataclass's fields suggest; ``flag``: where they were said."""
    check_once(**{flag: assignments})
    found = {}
    for assignment in assignments:
        _, name, value = _split(assignment, [""], flag)
        found[name] = _value(value, options_of(cls).get(name, (None, None))[0])
    return found


def text_of(described: str) -> str:
    """JSON as given, or the content of the file of that name."""
    if described.lstrip().startswith("{"):
        return described
    path = Path(described)
    try:
        if path.is_dir():
            raise CommandError(f"--method-json {described!r} is a folder: give the JSON file in it")
        if not path.is_file():
            raise CommandError(f"--method-json {described!r} is neither a file nor a JSON object")
        return read_text(path)
    except (OSError, ConfigError) as error:
        raise CommandError(f"cannot read {described}: {error}") from None


def _data_of(described: str) -> Any:
    """What JSON says, given as such or in a file."""
    text = text_of(described)
    try:
        return from_json(text)
    except ConfigError as error:
        such = '; write it as {"method": "fastv", "layer": 3}' if str(error).startswith("not JSON:") else ""
        raise CommandError(f"--method-json {shown(described)}: {error}{such}") from None


def _known() -> Mapping[str, type]:
    """Name -> dataclass with the options, of every method: from the index, or the classes themselves."""
    facts = index.methods()
    if facts is None:
        from foveate.methods import list_methods

        return list_methods()
    return {str(one["name"]): index.options(one) for one in facts}


def _class(name: str, known: Mapping[str, type], others: Collection[str] = ()) -> type:
    if name.lower() not in known:
        raise UnknownNameError(
            f"there is no method {name!r}{_meant(name, [*known, *others])}; `foveate methods` lists all"
        )
    return known[name.lower()]


def _meant(name: str, known: Sequence[str]) -> str:
    """What somebody may have meant by a method that is none."""
    if not name:
        return " (a sum has one on both sides of every +)"
    if "/" in name:
        return " (a model is given with --model, or -m)"
    if re.search("[:=(,]", name):
        return " (options are given with --option, as in --method fastv --option layer=3)"
    return nearest(name, known)


def _check_data(data: Any, known: Mapping[str, type]) -> None:
    """What JSON says of a method; what is no method at all, and how a sum is put together, is left to the method itself."""
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        return
    if data["method"] == "composed":
        parts = data.get("methods")
        for part in parts if isinstance(parts, list) else ():
            _check_data(part, known)
        return
    build(_class(data["method"], known), {str(key): value for key, value in data.items() if key != "method"})


def _having(assignment: str, classes: Sequence[type]) -> list[int]:
    """Which parts of a sum have the option that is named without a part."""
    name = assignment.partition("=")[0].strip()
    return [part for part, cls in enumerate(classes) if name in options_of(cls)]


def _split(
    assignment: str, names: Sequence[str], flag: str = "option", having: Sequence[int] = ()
) -> tuple[int, str, str]:
    """Which part, which option, what value; ``having``: parts that have the option, if it is named without one."""
    option, equals, value = assignment.partition("=")
    option = option.strip()
    if not equals or not option:
        raise CommandError(f"--{flag} {assignment!r} is not name=value, such as {_EXAMPLES[flag]}")
    if len(names) == 1:
        return 0, option, value.strip()
    if len(having) == 1:
        return having[0], option, value.strip()
    part, dot, option = option.partition(".")
    if dot and part not in names:
        raise CommandError(f"--option {assignment!r}: there is no method {part!r} in the sum{nearest(part, names)}")
    if not dot and not having:
        raise CommandError(f"--option {assignment!r}: no method of the sum has an option {part!r}")
    if not dot or names.count(part) != 1:
        owner = names[having[0]] if having else names[0]
        raise ConfigError(
            f"{assignment!r} could belong to {' or '.join(dict.fromkeys(names[i] for i in having)) or part}: name one, e.g. "
            f"--option {owner}.{option or part}=..."
        )
    return names.index(part), option, value.strip()


def _value(text: str, hint: Any) -> Any:
    """Text as the option's type suggests; what does not fit stays text, and the method will say what it wants."""
    kinds = (hint, *typing.get_args(hint))
    is_list = any(typing.get_origin(kind) is tuple for kind in kinds)
    is_one = any(kind in (int, float) for kind in kinds) and "," not in text  # of an option that may be either
    try:
        return from_json(f"[{text}]" if is_list and not is_one and not text.startswith("[") else text)
    except ConfigError:
        return text
