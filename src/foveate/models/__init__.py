"""Where things are in a family of models: one declarative file each, found by ``config.model_type`` (and by that of the vision
tower, where a family comes with several)."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import Any

from packaging.version import Version
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as LISTED

from foveate.errors import UnsupportedModelError, nearest
from foveate.models.family import Family
from foveate.models.refused import REFUSED

#: The versions of transformers that these files describe: from the first to before the last.
TRANSFORMERS = ("5.16", "6")

_OWN_CODE = "code of its own (trust_remote_code), and foveate knows where things are in transformers' own models only"


@cache
def list_families() -> dict[str, Family]:
    """Name -> spec of every supported family: each module of this package that has a ``FAMILY``."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = [
        replace(module.FAMILY, also=getattr(module, "ALSO", ())) for module in modules if hasattr(module, "FAMILY")
    ]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def family_of(config: object) -> Family:
    """Return the spec for a model's config; `UnsupportedModelError` lists what there is, and says why something is not."""
    check_version(version("transformers"))
    model_type = getattr(config, "model_type", None)
    if type(config).__module__.partition(".")[0] == "transformers_modules":
        raise UnsupportedModelError(
            f"this {model_type!r} model runs {_OWN_CODE}: load it without trust_remote_code, if transformers has the type"
        )
    if model_type in REFUSED:
        raise UnsupportedModelError(
            f"foveate does not support the model family {model_type!r}, because {REFUSED[model_type]}; it supports "
            f"{', '.join(list_families())}"
        )
    found = [family for family in list_families().values() if model_type in family.types]
    if not found:
        if model_type in CONFIG_MAPPING and model_type not in LISTED:
            why = "has no vision part (its config has no vision_config), so it has no visual tokens"
            if hasattr(config, "vision_config"):
                why = "is none that transformers has for images and text, so no language model reads visual tokens"
            elif hasattr(config, "patch_size"):
                why = "is a vision tower alone, so no language model reads visual tokens"
            raise UnsupportedModelError(
                f"a {model_type!r} model {why}: give a vision-language model; foveate knows {', '.join(list_families())}"
            )
        hint = nearest(str(model_type), sorted({name for family in list_families().values() for name in family.types}))
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


def read_config(source: str) -> Any:
    """Return the config of a folder or of a model on the hub.

    Raises:
        UnsupportedModelError: the model runs code of its own, which is not run, and nobody is asked whether it may be.
    """
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
    raise UnsupportedModelError(
        f"the model {source!r} runs {_OWN_CODE}: give one of a type that transformers has (of many there is a copy whose name "
        "ends in -hf)"
    )


def check_version(installed: str) -> None:
    """Raise `UnsupportedModelError` for a transformers in which things may be elsewhere: numbers would be wrong in silence."""
    first, end = map(Version, TRANSFORMERS)
    if not first.release <= Version(installed).release[:2] < end.release:
        raise UnsupportedModelError(
            f"foveate knows the models of transformers {first} and later, but not yet those of {end}, and this is {installed}: "
            f"pip install 'transformers>={first},<{end}'"
        )
