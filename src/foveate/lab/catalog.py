"""``foveate methods`` and ``foveate families``: what there is. Torch is not imported for it, as long as `index` knows."""

from __future__ import annotations

from textwrap import fill, wrap
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foveate.errors import UnknownNameError, nearest
from foveate.lab import index, sheet
from foveate.lab.index import BLOCKS, LAYERS, group_sites
from foveate.lab.terminal import CommandError

#: what `keep` is a share of, in words
COUNTED = {
    "tokens": f"visual tokens per layer ({LAYERS} layers)",
    "tower": f"patches per vision block ({BLOCKS} blocks)",
    "decode": f"visual keys and values that a step reads ({LAYERS} layers)",
    "cache": f"visual keys and values in the cache ({LAYERS} layers)",
    "compute": f"work of visual tokens in FFNs ({LAYERS} layers)",
}

#: where a method acts, in words, on the way through a model
WHERE = {
    "pixels": "before the vision tower",
    "tower": "in the vision tower",
    "tower_output": "at the end of the vision tower",
    "lm_entry": "where the language model begins",
    "decoder": "in the language model",
    "cache": "in the KV cache, once the prompt has ended",
    "decode": "while the answer is written",
}


def methods() -> list[dict[str, Any]]:
    """Plain data about every method, from the index or from the classes."""
    found = index.methods()
    if found is None:
        from foveate.lab import declared

        found = declared.methods()
    return found


def describe_method(name: str) -> dict[str, Any]:
    """Plain data about one method."""
    known = {facts["name"]: facts for facts in methods()}
    if name.lower() not in known:
        hint = nearest(name, known) if name else " (a sum has one on both sides of every +)"
        raise UnknownNameError(f"there is no method {name!r}{hint}; `foveate methods` lists all")
    return known[name.lower()]


def describe_methods(site: str = "", search: str = "") -> list[dict[str, Any]]:
    """Plain data about every method that acts at a place (`Site.at`) and has all the words in its name, paper or docstring."""
    everything = methods()
    if site and not any(site in method["places"] for method in everything):
        _check_place(site)
    here = [method for method in everything if not site or site in method["places"]]
    found = [method for method in here if all(word in _text(method) for word in search.lower().split())]
    if not found:
        asked = " and ".join(f"--{option} {word!r}" for option, word in (("site", site), ("search", search)) if word)
        raise CommandError(f"no method fits {asked}; `foveate methods` lists them all")
    return found


def describe_families() -> list[dict[str, Any]]:
    """Plain data about every family."""
    found = index.families()
    if found is None:
        from foveate.lab import declared

        found = declared.families()
    return found


def is_known(model_type: str) -> str:
    """A sentence about a type of models that there is a family for; "" for any other."""
    found = next((each for each in describe_families() if model_type in each["types"]), None)
    if found is None:
        return ""
    return (
        f"foveate has the type {model_type!r} already ({found['model']}), and `foveate.compress` takes its models as they are; "
        "what follows is what a new file for it would begin with"
    )


def _check_place(site: str) -> None:
    if site not in WHERE:
        raise CommandError(f"--site {site}: there is no such place{nearest(site, WHERE)}; there are {', '.join(WHERE)}")


def show_methods(found: list[dict[str, Any]], console: Console) -> None:
    """What each method does, by where in the model it acts; what is wider than the screen goes on in the next line."""
    column = max(len(method["name"]) for method in found) + 4
    width = max(console.width - 1, column + 20)
    groups: dict[str, list[str]] = {}
    for method in found:
        said = method["doc"].partition("\n")[0].replace("``", "`")
        notes = [] if method["training_free"] else ["needs training"]
        notes += [_source(method).partition(",")[0]] if _source(method) else []
        source = f"({', '.join(notes)})".replace(" ", "\u00a0") if notes else ""  # which stays in one line
        start = f"  {method['name']}".ljust(column)
        text = f"{said} {source}".rstrip()
        lines = wrap(text, width, initial_indent=start, subsequent_indent=" " * column, break_on_hyphens=False)
        groups.setdefault(_where(method), []).extend(line.replace("\u00a0", " ") for line in lines)
    for where in sorted(groups, key=_order):
        console.print(f"[bold]{escape(where)}[/bold]")
        console.print("\n".join(map(escape, groups[where])), soft_wrap=True)
    console.print(
        "\nAll take --keep. `foveate methods NAME` has the sites, the paper and the options of one;\n--site and --search find "
        "some. Layers and vision blocks count from 0; -1 is the last one.",
        style="dim",
        markup=False,
    )


def show_method(method: dict[str, Any], console: Console) -> None:
    """One method: its docstring and its options."""
    source = f"{method['paper']['title']} ({_source(method)})" if method["paper"] else _source(method)
    console.print(f"[bold]{escape(method['class'])}[/bold]  {escape(source)}".rstrip() + "\n")
    width = min(console.width, 100)
    console.print(sheet.about(method["doc"], width), markup=False)
    depths = f"{BLOCKS} vision blocks and {LAYERS} decoder layers, counted from 0 (-1 is the last one)"
    sites = f"{group_sites(method['sites'])}, in a model with {depths}"
    facts = {"sites": sites, "training": "not needed" if method["training_free"] else "needed"}
    facts["budget"] = sheet.budget(method)
    if method["mean"] is not None:
        facts["keep"] = f"{method['mean']:.2f} of the {COUNTED[method['unit']]}, with the defaults below"
    console.print()
    for name, text in facts.items():
        console.print(fill(text, width, initial_indent=f"{name:<9}", subsequent_indent=" " * 9), markup=False)
    console.print("\n[bold]options[/bold]")
    console.print("\n".join(sheet.options(method, width)), markup=False)


def show_families(found: list[dict[str, Any]], console: Console) -> None:
    """All families as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("model", "model_type", "inputs"):
        table.add_column(column)
    for family in found:
        called = "" if family["family"] == family["model_type"] else f" (here {family['family']})"
        table.add_row(escape(family["model"]), escape(", ".join(family["types"]) + called), ", ".join(family["inputs"]))
    console.print(table)
    console.print(
        "\nA model works if its config.json has one of these as `model_type`. `--inspect TYPE` proposes the file of another.",
        style="dim",
        markup=False,
    )


def _where(method: dict[str, Any]) -> str:
    """In which parts of a model it acts."""
    places = method["places"]
    return " and ".join(words for place, words in WHERE.items() if place in places and not _implied(place, places))


def _implied(place: str, places: list[str]) -> bool:
    return place == "tower_output" and "tower" in places


def _order(where: str) -> tuple[int, int]:
    """The way through a model; those that act in several parts come last."""
    known = list(WHERE.values())
    return where.count(" and "), next((i for i, words in enumerate(known) if where.startswith(words)), len(known))


def _source(method: dict[str, Any]) -> str:
    """Where it was published, without the title; or that it is a control."""
    if method["paper"] is None:
        return "control" if method["control"] else ""
    return "{venue} {year}, {arxiv}".format(**method["paper"])


def _text(method: dict[str, Any]) -> str:
    """What a search looks at."""
    return " ".join([method["name"], method["paper"]["title"] if method["paper"] else "", method["doc"]]).lower()
