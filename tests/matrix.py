"""Which kinds of sites a family is not asked for, as it refuses them. The site's table of methods and families agrees."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable

import tiny

import foveate
from foveate import Host, Method, Site
from foveate.errors import FoveateError

LLAVA = Host("llava", tiny.BLOCKS, tiny.LAYERS, has_cls=True)
#: families whose FFNs are mixtures of experts
EXPERTS = ("glm4v_moe", "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_vl_moe")
#: families whose features are put together from tiles after the tower
TILED = ("llava_next", "llava_next_video", "llava_onevision")


@functools.cache
def kinds_of(acting: Method | Site) -> frozenset[Hashable]:
    """Places, actions and position policies of a method or a site."""
    if isinstance(acting, Site):
        return frozenset({(acting.at, acting.where, acting.action)})
    try:
        sites = acting.sites(LLAVA)
    except FoveateError:
        return frozenset({repr(acting)})
    asked = [(site.at, site.layer, each) for site in sites for each in site.asked]
    reads = {layer for at, layer, each in asked if at == "decoder" and each.kind == "last_row"}
    more: set[Hashable] = {"attention in many layers"} if len(reads) > 2 else set()
    if any((at, layer) == ("decoder", 1) and each.kind in ("keys", "last_row") for at, layer, each in asked):
        more.add("attention of layer 0")
    blocks = [each.layer for at, _, each in asked if at == "tower_output" and each.layer is not None]
    if any(0 <= block < tiny.BLOCKS - 1 for block in blocks):
        more.add("blocks before a merger")
    compared = [part for part in acting.parts() if part.temporal]
    places = {(site.at, "frames") for part in compared for site in part.sites(LLAVA) if site.at != "decode"}
    return frozenset({acting.parts()[0].positions, *more, *places}).union(*map(kinds_of, sites))


def refused(family: str | None, kinds: Collection[Hashable]) -> str:
    """Why a family is not asked for one of these kinds; "" where it is."""
    if family in tiny.gemma.SLIDING and ("decode", "before", "reduce") in kinds:
        return "sliding layers have no decode sites"
    recurrent, virtual = family in tiny.RECURRENT, "virtual" in kinds
    if ("decoder", "before", "reuse") in kinds and (recurrent or family in tiny.gemma.SLIDING):
        return "neighbouring layers are of different kinds: see answers/test_reuse.py"
    if ("decoder", "before", "channels") in kinds and family in EXPERTS:
        return "a mixture of experts has no channels to choose"
    if recurrent and (virtual or {"attention in many layers", "attention of layer 0"} & set(kinds)):
        return "some layers carry a state and have no attention"
    if virtual and ("tower", "mid", "reduce") in kinds and family in TILED:
        return "features are rearranged after the tower: see answers/test_virtual.py"
    known = foveate.list_families()[family].frames if family in tiny.VIDEO else ()
    if family and any(kind[1:] == ("frames",) and kind[0] not in known for kind in kinds if isinstance(kind, tuple)):
        return "which frames are of one video is not known there"
    if family in tiny.tiles.OVIS and any(kind[:1] == ("pixels",) for kind in kinds if isinstance(kind, tuple)):
        return "its tower takes images of one size"
    if family in tiny.cpm.FAMILIES and "blocks before a merger" in kinds:
        return "its tower merges rows after them: see runtime/test_merger.py"
    if family in tiny.cpm.FAMILIES and ("tower_output", "before", "restore") in kinds:
        return "parked where the tower merges: see runtime/test_merger.py"
    return ""
