"""What methods and families say of themselves, as plain data, from their classes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

from foveate.lab.index import BLOCKS, LAYERS
from foveate.method import Method, Paper
from foveate.methods import list_methods
from foveate.models import list_families
from foveate.models.family import Family
from foveate.serialise import options_of, plain
from foveate.site import Host, Site

EXAMPLE = Host(family="llava", blocks=BLOCKS, layers=LAYERS, has_cls=True)


def methods() -> list[dict[str, Any]]:
    """Every method."""
    return [method(cls) for cls in list_methods().values()]


def families() -> list[dict[str, Any]]:
    """Every family."""
    return [family(each) for each in list_families().values()]


def method(cls: type[Method]) -> dict[str, Any]:
    """A method's class."""
    return {
        "name": cls.name(),
        "class": cls.__name__,
        "paper": dataclasses.asdict(cls.paper) if isinstance(cls.paper, Paper) else None,
        "control": cls.control,
        "sites": [str(site) for site in _sites(cls)],
        "places": list(dict.fromkeys(site.at for site in _sites(cls))),
        "asks": sorted({str(signal) for site in _sites(cls) for signal in site.asked}),
        "training_free": cls.training_free,
        "trained_here": bool(cls.stages),
        "fixed_budget": cls.fixed_budget and cls.usual_threshold is None,
        "unit": cls.unit,
        "mean": _mean(cls),
        "options": {
            name: {"type": _type(hint), "default": None if default is dataclasses.MISSING else plain(default)}
            for name, (hint, default) in options_of(cls).items()
        },
        "doc": inspect.getdoc(cls) or "",
        "meanings": _meanings(cls),
    }


def title(spec: Family) -> str:
    """The models of a family, as its file calls them."""
    return (importlib.import_module(f"foveate.models.{spec.name}").__doc__ or spec.name).split(":")[0]


def family(spec: Family) -> dict[str, Any]:
    """A family's facts."""
    return {
        "family": spec.name,
        "model": title(spec),
        "model_type": spec.model_type,
        "types": list(spec.types),
        "tower": "unseen" if spec.tower.unseen else spec.tower.layout,
        "has_cls": spec.tower.leading > 0,
        "inputs": ["video" if "video" in name else "image" for name in spec.modalities],
    }


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


def _meanings(cls: type[Method]) -> dict[str, str]:
    """What each option means, from the ``Attributes:`` of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for names, says in re.findall(r"^    ([\w, ]+): (.*(?:\n     .*)*)", attributes, re.M):
            found |= dict.fromkeys(re.split(r",\s*", names), " ".join(says.split()))
    return {name: found[name] for name in options_of(cls) if name in found}


def _type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
