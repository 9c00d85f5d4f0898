"""``foveate methods`` and ``foveate families``: what there is."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foveate.method import Method, Paper
from foveate.methods import list_methods, method_class
from foveate.models import list_families
from foveate.models.family import Family
from foveate.serialise import options_of, plain
from foveate.site import Host, Place, Site
from foveate.terminal import CommandError, group_sites

#: Sites depend on the model's depth; the table shows those in a model of this size (LLaVA-1.5-7B).
EXAMPLE = Host(family="llava", blocks=23, layers=32, has_cls=True)

#: what `keep` is a share of, in words
COUNTED = {
    "tokens": f"visual tokens per layer ({EXAMPLE.depth} layers)",
    "tower": f"patches per vision block ({EXAMPLE.blocks} blocks)",
    "decode": f"visual keys and values that a step reads ({EXAMPLE.depth} layers)",
    "cache": f"visual keys and values in the cache ({EXAMPLE.layers} layers)",
    "compute": f"work of visual tokens in FFNs ({EXAMPLE.depth} layers)",
}


def describe_method(name: str) -> dict[str, Any]:
    """Plain data about one method."""
    return _method(method_class(name))


def describe_methods(site: str = "", search: str = "") -> list[dict[str, Any]]:
    """Plain data about every method that acts at a place (`Site.at`) and has all the words in its name, paper or docstring."""
    if site and site not in get_args(Place):
        raise CommandError(f"--site {site}: there is no such place; there are {', '.join(get_args(Place))}")
    here = [cls for cls in list_methods().values() if not site or any(site == place.at for place in _sites(cls))]
    found = [method for method in map(_method, here) if all(word in _text(method) for word in search.lower().split())]
    if not found:
        asked = " and ".join(f"--{option} {word!r}" for option, word in (("site", site), ("search", search)) if word)
        raise CommandError(f"no method fits {asked}; `foveate methods` lists them all")
    return found


def describe_families() -> list[dict[str, Any]]:
    """Plain data about every family."""
    return [_family(family) for family in list_families().values()]


def show_methods(found: list[dict[str, Any]], console: Console) -> None:
    """All methods as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("method", "paper", "sites", "training", "budget", "keep counts", "options"):
        table.add_column(column, overflow="fold")
    for method in found:
        own = {name: option for name, option in method["options"].items() if name not in ("positions", "keep")}
        options = ", ".join(_assignment(name, option["default"]) for name, option in own.items())
        table.add_row(
            f"[bold]{escape(method['name'])}[/bold]",
            escape(_source(method)),
            escape(group_sites(method["sites"])),
            "free" if method["training_free"] else "needed",
            "fixed" if method["fixed_budget"] else "by content",
            method["unit"],
            escape(options),
        )
    console.print(table)
    console.print(
        "\nSites as in a model with 23 vision blocks and 32 decoder layers. All take `keep` and `positions`, too. "
        "`foveate methods NAME` tells more.",
        style="dim",
        markup=False,
    )


def show_method(method: dict[str, Any], console: Console) -> None:
    """One method: its docstring and its options."""
    source = str(Paper(**method["paper"])) if method["paper"] else _source(method)
    console.print(f"[bold]{escape(method['class'])}[/bold]  {escape(source)}".rstrip() + "\n")
    paragraphs = method["doc"].split("\n\n")
    console.print("\n\n".join(escape(paragraph.replace("\n", " ")) for paragraph in paragraphs))
    console.print(f"\nsites    {escape(group_sites(method['sites']))}")
    if method["mean"] is not None:
        console.print(f"keep     {method['mean']:.2f} of the {COUNTED[method['unit']]}, in the setting below")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("option", "type", "default"):
        table.add_column(column)
    for name, option in method["options"].items():
        table.add_row(escape(name), escape(option["type"]), escape(str(option["default"])))
    console.print()
    console.print(table)


def show_families(found: list[dict[str, Any]], console: Console) -> None:
    """All families as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("family", "model_type", "tower", "CLS", "inputs"):
        table.add_column(column)
    for family in found:
        inputs = escape(", ".join(family["inputs"]))
        names = escape(family["family"]), escape(family["model_type"])
        table.add_row(*names, family["tower"], "yes" if family["has_cls"] else "no", inputs)
    console.print(table)


def _method(cls: type[Method]) -> dict[str, Any]:
    return {
        "name": cls.name(),
        "class": cls.__name__,
        "paper": dataclasses.asdict(cls.paper) if isinstance(cls.paper, Paper) else None,
        "control": cls.control,
        "sites": [str(site) for site in _sites(cls)],
        "training_free": cls.training_free,
        "fixed_budget": cls.fixed_budget and cls.usual_threshold is None,
        "unit": cls.unit,
        "mean": _mean(cls),
        "options": {
            name: {"type": _type(hint), "default": None if default is dataclasses.MISSING else plain(default)}
            for name, (hint, default) in options_of(cls).items()
        },
        "doc": inspect.getdoc(cls) or "",
    }


def _source(method: dict[str, Any]) -> str:
    """Where it was published, without the title; or that it is a control."""
    return Paper(**method["paper"]).reference if method["paper"] else "control" if method["control"] else ""


def _text(method: dict[str, Any]) -> str:
    """What a search looks at."""
    return " ".join([method["name"], method["paper"]["title"] if method["paper"] else "", method["doc"]]).lower()


def _sites(cls: type[Method]) -> list[Site]:
    try:
        return [site for site in cls().sites(EXAMPLE) if isinstance(site, Site)]
    except Exception:  # options without defaults, a model that cannot host it, or a mistake of another package
        return []


def _mean(cls: type[Method]) -> float | None:
    """What `keep` is where it is not given, in the example."""
    try:
        return None if cls.unit == "none" else cls().mean(EXAMPLE)
    except Exception:  # as above
        return None


def _assignment(name: str, default: Any) -> str:
    """``keep=0.5``, as ``--option`` takes it; only the name, where nothing is set."""
    if default is None or default == []:
        return name
    values = default if isinstance(default, list) else [default]
    return f"{name}={','.join(f'{value:.3g}' if isinstance(value, float) else str(value) for value in values)}"


def _type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _family(family: Family) -> dict[str, Any]:
    return {
        "family": family.name,
        "model_type": family.model_type,
        "tower": family.tower.layout,
        "has_cls": family.tower.leading > 0,
        "inputs": ["video" if "video" in name else "image" for name in family.modalities],
    }
