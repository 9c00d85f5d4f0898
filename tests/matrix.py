"""Which kinds of sites a family is not asked for, as it refuses them. The site's table of methods and families agrees."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable

import tiny

import foveate
from foveate import Host, Method, Site
from foveate.errors import FoveateError

LLAVA = Host("llava", tiny.BLOCKS, tiny.LAYERS, has_cls=True)


@functools.cache
def kinds_of(acting: Method | Site) -> frozenset[Hashable]:
    """Places, actions and position policies of a method or a site."""
    if isinstance(acting, Site):
        return frozenset({(acting.at, acting.where, acting.action)})
    try:
        sites = acting.sites(LLAVA)
    except FoveateError:
        return frozenset({repr(acting)})
    compared = [part for part in acting.parts() if part.temporal]
    places = {(site.at, "frames") for part in compared for site in part.sites(LLAVA) if site.at != "decode"}
    return frozenset({acting.parts()[0].positions, *places}).union(*map(kinds_of, sites))


def refused(family: str | None, kinds: Collection[Hashable]) -> str:
    """Why a family is not asked for one of these kinds; "" where it is."""
    if family in tiny.gemma.SLIDING and ("decode", "before", "reduce") in kinds:
        return "sliding layers have no decode sites"
    known = foveate.list_families()[family].frames if family in tiny.VIDEO else ()
    if family and any(kind[1:] == ("frames",) and kind[0] not in known for kind in kinds if isinstance(kind, tuple)):
        return "which frames are of one video is not known there"
    if family in tiny.tiles.OVIS and any(kind[:1] == ("pixels",) for kind in kinds if isinstance(kind, tuple)):
        return "its tower takes images of one size"
    if family in tiny.cpm.FAMILIES and ("tower_output", "before", "restore") in kinds:
        return "parked where the tower merges: see runtime/test_merger.py"
    return ""
