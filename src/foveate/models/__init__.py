"""Where things are in a family of models: one declarative file each, found by ``config.model_type``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from foveate.errors import UnsupportedModelError
from foveate.models.family import Family


@cache
def families() -> dict[str, Family]:
    """``config.model_type`` -> spec of every supported family: each module of this package that has a ``FAMILY``."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.model_type: family for family in sorted(found, key=lambda family: family.model_type)}


def family_of(config: object) -> Family:
    """The spec for a model's config; `UnsupportedModelError` lists what there is."""
    model_type = getattr(config, "model_type", None)
    if model_type not in families():
        raise UnsupportedModelError(
            f"foveate does not know the model family {model_type!r}; it knows {', '.join(families())}, and a family more is a "
            "file more in foveate/models with a FAMILY that says where things are (CONTRIBUTING.md, A family is one file)"
        )
    return families()[str(model_type)]
