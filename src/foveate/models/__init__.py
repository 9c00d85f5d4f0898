"""Where things are in a family of models: one declarative file each, found by ``config.model_type`` (and by that of the vision
tower, where a family comes with several)."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import version

from packaging.version import Version

from foveate.errors import UnsupportedModelError, nearest
from foveate.models.family import Family
from foveate.models.refused import REFUSED

#: The versions of transformers that these files describe: from the first to before the last.
TRANSFORMERS = ("5.16", "6")


@cache
def list_families() -> dict[str, Family]:
    """Name -> spec of every supported family: each module of this package that has a ``FAMILY``."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def family_of(config: object) -> Family:
    """Return the spec for a model's config; `UnsupportedModelError` lists what there is, and says why something is not."""
    check_version(version("transformers"))
    model_type = getattr(config, "model_type", None)
    if model_type in REFUSED:
        raise UnsupportedModelError(
            f"foveate does not support the model family {model_type!r}, because {REFUSED[model_type]}; it supports "
            f"{', '.join(list_families())}"
        )
    found = [family for family in list_families().values() if family.model_type == model_type]
    if not found:
        hint = nearest(str(model_type), sorted({family.model_type for family in list_families().values()}))
        raise UnsupportedModelError(
            f"foveate does not know the model family {model_type!r}{hint}; it knows {', '.join(list_families())}, and a family "
            "more is a file in foveate/models with a FAMILY that says where things are (CONTRIBUTING.md, A family is one file)"
        )
    tower_type = getattr(getattr(config, "vision_config", None), "model_type", None)
    fitting = [family for family in found if family.tower_type in ("", tower_type)]
    if not fitting:
        raise UnsupportedModelError(
            f"foveate does not know {model_type!r} with a {tower_type!r} vision tower; it knows it with "
            f"{' or '.join(repr(family.tower_type) for family in found)}"
        )
    return fitting[0]


def check_version(installed: str) -> None:
    """Raise `UnsupportedModelError` for a transformers in which things may be elsewhere: numbers would be wrong in silence."""
    first, end = map(Version, TRANSFORMERS)
    if not first.release <= Version(installed).release[:2] < end.release:
        raise UnsupportedModelError(
            f"foveate knows the models of transformers {first} and later, but not yet those of {end}, and this is {installed}: "
            f"pip install 'transformers>={first},<{end}'"
        )
