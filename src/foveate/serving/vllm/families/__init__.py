"""One file per model class of vLLM; `engines` finds them, nothing lists them."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from foveate.serving.vllm.engine import Engine


@cache
def engines() -> dict[str, Engine]:
    """Architecture -> engine."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found: list[Engine] = [module.ENGINE for module in modules]
    return {engine.architecture: engine for engine in found}
