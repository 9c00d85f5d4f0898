"""foveate: vision-language models with fewer vision tokens, without retraining.

>>> import foveate
>>> handle = foveate.compress(model, foveate.FastV(keep=0.5))   # doctest: +SKIP
>>> model.generate(**inputs)                                    # doctest: +SKIP

Names are imported when they are first used, so that ``foveate --help`` does not wait for torch.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.answers import Channels, Reuse
    from foveate.cost import Report
    from foveate.errors import FoveateError
    from foveate.escape import Changes
    from foveate.handle import Handle, attached, compress, from_pretrained
    from foveate.method import Host, Method, Paper, Site
    from foveate.methods import list_methods, method_from_dict
    from foveate.methods.adaptivevoco import AdaptiveVoCo as AdaptiveVoCo
    from foveate.methods.adsc import ADSC as ADSC
    from foveate.methods.air import AIR as AIR
    from foveate.methods.anchorprune import AnchorPrune as AnchorPrune
    from foveate.methods.apet import ApET as ApET
    from foveate.methods.autoprune import AutoPrune as AutoPrune
    from foveate.methods.cdpruner import CDPruner as CDPruner
    from foveate.methods.clse import CLSE as CLSE
    from foveate.methods.covipal import CoViPAL as CoViPAL
    from foveate.methods.dart import DART as DART
    from foveate.methods.divprune import DivPrune as DivPrune
    from foveate.methods.dmllm import DMLLM as DMLLM
    from foveate.methods.downsample import Downsample as Downsample
    from foveate.methods.duetvlm import DuetVLM as DuetVLM
    from foveate.methods.dycoke import DyCoke as DyCoke
    from foveate.methods.dymu import DyMU as DyMU
    from foveate.methods.eadp import EADP as EADP
    from foveate.methods.evoprune import EvoPrune as EvoPrune
    from foveate.methods.evs import EVS as EVS
    from foveate.methods.fastervlm import FasterVLM as FasterVLM
    from foveate.methods.fastv import FastV as FastV
    from foveate.methods.fastvid import FastVID as FastVID
    from foveate.methods.feather import Feather as Feather
    from foveate.methods.ficocov import FiCoCoV as FiCoCoV
    from foveate.methods.flashvid import FlashVID as FlashVID
    from foveate.methods.flowcut import FlowCut as FlowCut
    from foveate.methods.framefusion import FrameFusion as FrameFusion
    from foveate.methods.gsearch import GSearch as GSearch
    from foveate.methods.hiprune import HiPrune as HiPrune
    from foveate.methods.holitom import HoliTom as HoliTom
    from foveate.methods.holov import HoloV as HoloV
    from foveate.methods.ipcv import IPCV as IPCV
    from foveate.methods.ivcprune import IVCPrune as IVCPrune
    from foveate.methods.lftr import LFTR as LFTR
    from foveate.methods.luvc import LUVC as LUVC
    from foveate.methods.mmtok import MMTok as MMTok
    from foveate.methods.mustdrop import MustDrop as MustDrop
    from foveate.methods.oim import OIM as OIM
    from foveate.methods.otprune import OTPrune as OTPrune
    from foveate.methods.ottvid import OTTVid as OTTVid
    from foveate.methods.parvts import ParVTS as ParVTS
    from foveate.methods.pixelprune import PixelPrune as PixelPrune
    from foveate.methods.prumerge import PruMerge as PruMerge
    from foveate.methods.prunesid import PruneSID as PruneSID
    from foveate.methods.prunevid import PruneVid as PruneVid
    from foveate.methods.pyramiddrop import PyramidDrop as PyramidDrop
    from foveate.methods.qcache import QCache as QCache
    from foveate.methods.quecc import QueCC as QueCC
    from foveate.methods.random import Random as Random
    from foveate.methods.redundancylens import RedundancyLens as RedundancyLens
    from foveate.methods.relevancenet import RelevanceNet as RelevanceNet
    from foveate.methods.rlt import RLT as RLT
    from foveate.methods.skipvision import SkipVision as SkipVision
    from foveate.methods.sparsevlm import SparseVLM as SparseVLM
    from foveate.methods.sparsevlmplus import SparseVLMPlus as SparseVLMPlus
    from foveate.methods.spu import SPU as SPU
    from foveate.methods.stride import Stride as Stride
    from foveate.methods.tome import ToMe as ToMe
    from foveate.methods.v2drop import V2Drop as V2Drop
    from foveate.methods.vidcom2 import VidCom2 as VidCom2
    from foveate.methods.visionselector import VisionSelector as VisionSelector
    from foveate.methods.visionzip import VisionZip as VisionZip
    from foveate.methods.vispruner import VisPruner as VisPruner
    from foveate.methods.vistog import VisToG as VisToG
    from foveate.methods.vitcop import ViTCoP as ViTCoP
    from foveate.methods.vlmpruner import VLMPruner as VLMPruner
    from foveate.methods.vocollama import VoCoLLaMA as VoCoLLaMA
    from foveate.methods.vscan import VScan as VScan
    from foveate.methods.vtccls import VTCCLS as VTCCLS
    from foveate.methods.vtw import VTW as VTW
    from foveate.models import list_families
    from foveate.runtime.stored import Memory
    from foveate.signal import Signal
    from foveate.tokens import Parked, Reduction, Tokens

logging.getLogger(__name__).addHandler(logging.NullHandler())  # quiet, unless a program says otherwise

__version__ = "0.1.0"

__all__ = [
    "Changes",
    "Channels",
    "FoveateError",
    "Handle",
    "Host",
    "Memory",
    "Method",
    "Paper",
    "Parked",
    "Reduction",
    "Report",
    "Reuse",
    "Signal",
    "Site",
    "Tokens",
    "attached",
    "compress",
    "from_pretrained",
    "list_families",
    "list_methods",
    "method_from_dict",
]

_HOME = {
    "Channels": "answers",
    "attached": "handle",
    "Changes": "escape",
    "compress": "handle",
    "from_pretrained": "handle",
    "Handle": "handle",
    "Report": "cost",
    "Reuse": "answers",
    "FoveateError": "errors",
    "Host": "method",
    "Memory": "runtime.stored",
    "Method": "method",
    "Paper": "method",
    "Site": "method",
    "list_methods": "methods",
    "method_from_dict": "methods",
    "list_families": "models",
    "Signal": "signal",
    "Parked": "tokens",
    "Reduction": "tokens",
    "Tokens": "tokens",
}


def __getattr__(name: str) -> Any:
    """Return the public names, the package ``foveate.methods``, and every method: ``foveate.FastV``."""
    if name in _HOME:
        return getattr(import_module(f"foveate.{_HOME[name]}"), name)
    if name == "methods":
        return import_module("foveate.methods")
    if name[:1].isupper():  # anything else may be a module: `from foveate import lab` asks here first
        home = import_module("foveate.methods")
        for known in (home.own_methods, home.list_methods):  # other packages are asked for what is not ours
            for cls in known().values():
                if cls.__name__ == name:
                    return cls
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")


def __dir__() -> list[str]:
    classes = import_module("foveate.methods").list_methods().values()
    return sorted({*globals(), *__all__, *(cls.__name__ for cls in classes)})
