"""foveate: vision-language models with fewer vision tokens, without retraining.

>>> import foveate
>>> handle = foveate.compress(model, foveate.FastV(keep=0.5))   # doctest: +SKIP
>>> model.generate(**inputs)                                    # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveate.compress import Handle, compress
from foveate.cost import Report
from foveate.errors import FoveateError
from foveate.method import Host, Method, Site
from foveate.methods import method_from_json, methods
from foveate.models import families
from foveate.tokens import Parked, Reduction, Tokens

if TYPE_CHECKING:  # for editors; at run time `methods` finds them
    from foveate.methods.divprune import DivPrune as DivPrune
    from foveate.methods.downsample import Downsample as Downsample
    from foveate.methods.dycoke import DyCoke as DyCoke
    from foveate.methods.fastv import FastV as FastV
    from foveate.methods.random import Random as Random
    from foveate.methods.stride import Stride as Stride
    from foveate.methods.tome import ToMe as ToMe
    from foveate.methods.v2drop import V2Drop as V2Drop
    from foveate.methods.visionzip import VisionZip as VisionZip
    from foveate.methods.vtw import VTW as VTW

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Every method is an attribute: ``foveate.FastV``."""
    for cls in methods().values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(cls.__name__ for cls in methods().values())})


__all__ = [
    "FoveateError",
    "Handle",
    "Host",
    "Method",
    "Parked",
    "Reduction",
    "Report",
    "Site",
    "Tokens",
    "compress",
    "families",
    "method_from_json",
    "methods",
]
