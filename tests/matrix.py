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
    reads = [site for site in sites if site.at == "decoder" and any(each.kind == "last_row" for each in site.asked)]
    in_many = {"attention in many layers"} if len(reads) > 2 else set()
    in_many |= {"every cache"} if sum(site.at == "cache" for site in sites) == LLAVA.layers else set()
    asked = [signal for site in sites for signal in site.asked]
    in_many |= {"states of the tower"} if any(signal.at == "tower" for signal in asked) else set()
    in_many |= {"the text alone"} if any(signal.kind == "text_pass" for signal in asked) else set()
    compared = [part for part in acting.parts() if part.temporal]
    places = {(site.at, "frames") for part in compared for site in part.sites(LLAVA) if site.at != "decode"}
    return frozenset({acting.parts()[0].positions, *in_many, *places}).union(*map(kinds_of, sites))


def refused(family: str | None, kinds: Collection[Hashable]) -> str:
    """Why a family is not asked for one of these kinds; "" where it is."""
    if family in tiny.gemma.SLIDING and ("decode", "before", "reduce") in kinds:
        return "sliding layers have no decode sites"
    if family in tiny.gemma.SLIDING and "every cache" in kinds:
        return "sliding layers forget by themselves"
    if family in TILED and "states of the tower" in kinds:
        return "rows of the tower are no tokens of the language model there"
    if family in tiny.gemma4.FAMILIES and "the text alone" in kinds:
        return "its layers are given something of every token"
    recurrent, virtual = family in tiny.RECURRENT, "virtual" in kinds
    if ("decoder", "before", "reuse") in kinds and (recurrent or family in tiny.gemma.SLIDING):
        return "neighbouring layers are of different kinds: see answers/test_reuse.py"
    if ("decoder", "before", "channels") in kinds and family in EXPERTS:
        return "a mixture of experts has no channels to choose"
    if recurrent and (virtual or "attention in many layers" in kinds):
        return "some layers carry a state and have no attention"
    if virtual and ("tower", "mid", "reduce") in kinds and family in TILED:
        return "features are rearranged after the tower: see answers/test_virtual.py"
    known = foveate.list_families()[family].frames if family in tiny.VIDEO else ()
    if family and any(kind[1:] == ("frames",) and kind[0] not in known for kind in kinds if isinstance(kind, tuple)):
        return "which frames are of one video is not known there"
    if family in tiny.tiles.OVIS and any(kind[:1] == ("pixels",) for kind in kinds if isinstance(kind, tuple)):
        return "its tower takes images of one size"
    if family in tiny.cpm.FAMILIES and ("tower_output", "before", "restore") in kinds:
        return "parked where the tower merges: see runtime/test_merger.py"
    return ""
