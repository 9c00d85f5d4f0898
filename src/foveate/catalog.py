"""``foveate methods`` and ``foveate families``: what there is."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foveate.method import Host, Method
from foveate.methods import method_class, methods
from foveate.models import families
from foveate.models.family import Family
from foveate.serialise import options_of, plain
from foveate.terminal import group_sites

#: Sites depend on the model's depth; the table shows those in a model of this size (LLaVA-1.5-7B).
EXAMPLE = Host(family="llava", blocks=23, layers=32, has_cls=True)


def describe_methods(name: str | None) -> Any:
    """Plain data about every method, or about one."""
    if name is not None:
        return _method(method_class(name))
    return [_method(cls) for cls in methods().values()]


def describe_families() -> list[dict[str, Any]]:
    """Plain data about every family."""
    return [_family(family) for family in families().values()]


def show_methods(found: list[dict[str, Any]], console: Console) -> None:
    """All methods as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("method", "paper", "sites", "training", "budget", "options"):
        table.add_column(column, overflow="fold")
    for method in found:
        own = {name: option for name, option in method["options"].items() if name != "positions"}
        options = ", ".join(_assignment(name, option["default"]) for name, option in own.items())
        table.add_row(
            f"[bold]{escape(method['name'])}[/bold]",
            escape(method["paper"]),
            escape(group_sites(method["sites"])),
            "free" if method["training_free"] else "needed",
            "fixed" if method["fixed_budget"] else "by content",
            escape(options),
        )
    console.print(table)
    console.print(
        "\nSites as in a model with 23 vision blocks and 32 decoder layers. All take `positions`, too. "
        "`foveate methods NAME` tells more.",
        style="dim",
        markup=False,
    )


def show_method(method: dict[str, Any], console: Console) -> None:
    """One method: its docstring and its options."""
    console.print(f"[bold]{escape(method['class'])}[/bold]  {escape(method['paper'])}\n")
    paragraphs = method["doc"].split("\n\n")
    console.print("\n\n".join(escape(paragraph.replace("\n", " ")) for paragraph in paragraphs))
    console.print(f"\nsites    {escape(group_sites(method['sites']))}")
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
        "paper": cls.paper,
        "sites": _sites(cls),
        "training_free": cls.training_free,
        "fixed_budget": cls.fixed_budget,
        "options": {
            name: {"type": _type(hint), "default": None if default is dataclasses.MISSING else plain(default)}
            for name, (hint, default) in options_of(cls).items()
        },
        "doc": inspect.getdoc(cls) or "",
    }


def _sites(cls: type[Method]) -> list[str]:
    try:
        return [str(site) for site in cls().sites(EXAMPLE)]
    except Exception:  # options without defaults, a model that cannot host it, or a mistake of another package
        return []


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
