"""Published methods with the options that the contract is checked with, and by which other tests call them."""

from __future__ import annotations

import pytest
from probes.synthetic import DropBlocks, ParkHalf, Received

import foveate
from foveate import (
    ADSC,
    AIR,
    DMLLM,
    IPCV,
    LUVC,
    OIM,
    SPU,
    VTW,
    DivPrune,
    Downsample,
    DyCoke,
    DyMU,
    EvoPrune,
    FastV,
    HoliTom,
    Method,
    PruMerge,
    PyramidDrop,
    Random,
    RedundancyLens,
    Stride,
    ToMe,
    V2Drop,
    VisionZip,
    VScan,
)

FULL = {  # every method with nothing removed
    "random": Random(keep=1.0),
    "stride": Stride(ratio=1.0, layers=(0, 2)),
    "fastv": FastV(ratio=1.0),
    "v2drop": V2Drop(ratios=(1.0, 1.0, 1.0)),
    "divprune": DivPrune(keep=1.0),
    "downsample": Downsample(keep=1.0),
    "dycoke": DyCoke(ratio=1.0, decode_ratio=1.0),
    "dycoke-temporal": DyCoke(keep=1.0, decode_ratio=1.0),
    "luvc": LUVC(keep=1.0),
    "oim": OIM(keep=1.0),
    "spu": SPU(keep=1.0, mode="residual"),
    "adsc": ADSC(keep=1.0),
    "ipcv": IPCV(ratio=1.0),
    "blocks": DropBlocks(keep=1.0),
    "renumber": Stride(keep=1.0, positions="renumber"),
}

METHODS: dict[str, Method] = {
    "stride": Stride(keep=0.5),
    "random": Random(layer=2, ratio=0.3),
    "cascade": Stride(ratio=0.5, layers=(0, 2, 4)),
    "fastv": FastV(),
    "vtw": VTW(),
    "v2drop": V2Drop(),
    "divprune": DivPrune(keep=0.3),
    "tome": ToMe(),
    "visionzip": VisionZip(keep=0.4, contextual=0.3),
    "downsample": Downsample(keep=0.5),
    "native": Downsample(keep=0.5, positions="native"),
    "renumber": Stride(ratio=0.5, layers=(0, 2), positions="renumber"),
    "luvc": OIM(keep=0.8) + SPU(ratio=0.6, schedule="halving", mode="low_frequency_energy", filter="notch"),
    "luvc-small": OIM(keep=0.8, similarity="keys", positions="renumber")
    + SPU(ratio=0.7, positions="renumber", schedule="linear", normalise=False),
    "oim": OIM(passes=((1, "height", 0.7), (1, "width", 0.5), (3, "height", 0.6)), weighted=False),
    "oim-shared": OIM(keep=0.5, shared=True, positions="native"),
    "spu": SPU(ratio=0.7, along="channels", every=1),
    "luvc-usual": LUVC(),
    "downsample+luvc": Downsample(keep=0.6) + LUVC(),
    "adsc": ADSC(),
    "adsc-2d": ADSC(keep=0.5, layers=(1, 4), pattern="2d", offset="first"),
    "adsc-checker": ADSC(keep=0.4, pattern="checker", positions="renumber"),
    "tome+adsc": ToMe(keep=0.7) + ADSC(keep=0.4),
    "tome+fastv": ToMe(keep=0.7) + FastV(),
    "ipcv": IPCV(stabilise=2, neighbours=3),
    "ipcv-plain": IPCV(ratio=0.1, block=2, stabilise=0, min_tokens=0),
    "dycoke": DyCoke(),
    "dycoke-temporal": DyCoke(keep=0.4, decode_ratio=1.0),
    "prumerge": PruMerge(),
    "prumerge-plus": PruMerge(keep=0.4, plus=True),
    "pyramiddrop": PyramidDrop(),
    "pyramiddrop-renumbered": PyramidDrop(positions="renumber"),
    "air": AIR(layers=(3, 4, 5), outliers=4, window=2, into="text"),
    "redundancylens": RedundancyLens(window=3),
    "ipcv+visionzip+fastv": IPCV() + VisionZip(keep=0.4) + FastV(),
}

# A method that has no plan yet runs with its defaults, so that a new file is tested without an edit here.
for name, cls in foveate.list_methods().items():
    if not any(isinstance(part, cls) for method in METHODS.values() for part in method.parts()):
        METHODS[name] = cls()

#: other ways to run of some of them, which the matrix alone asks for
MORE: dict[str, Method] = {
    "dymu-threshold": DyMU(threshold=0.5),
    "holitom-alone": HoliTom(segments="none"),
    "holitom-similarity": HoliTom(segments="similarity"),
    "vscan-qwen": VScan(scan="qwen"),
    "vscan-llava": VScan(scan="llava"),
    "evoprune-mean": EvoPrune(schedule="mean"),
    "dmllm-last": DMLLM(layer=2, last=4),
}

#: and probes that are at hand by a name
PLANS = METHODS | {"park": ParkHalf(), "park-mid": ParkHalf(mid=True), "blocks": DropBlocks(), "signals": Received()}

plan = pytest.mark.parametrize("plan", PLANS)
