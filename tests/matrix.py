"""Which kinds of sites a family is not asked for, as it refuses them. The site's table of methods and families agrees."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable

import tiny

from foveate import Host, Method, Site
from foveate.errors import FoveateError


@functools.cache
def kinds_of(acting: Method | Site) -> frozenset[Hashable]:
    """Places, actions and position policies of a method or a site."""
    if isinstance(acting, Site):
        return frozenset({(acting.at, acting.where, acting.action)})
    try:
        sites = acting.sites(Host("llava", tiny.BLOCKS, tiny.LAYERS, has_cls=True))
    except FoveateError:
        return frozenset({repr(acting)})
    return frozenset({acting.parts()[0].positions}).union(*map(kinds_of, sites))


def refused(family: str | None, kinds: Collection[Hashable]) -> str:
    """Why a family is not asked for one of these kinds; "" where it is."""
    if family in tiny.gemma.SLIDING and ("decode", "before", "reduce") in kinds:
        return "sliding layers have no decode sites"
    if family in tiny.tiles.OVIS and any(kind[:1] == ("pixels",) for kind in kinds if isinstance(kind, tuple)):
        return "its tower takes images of one size"
    if family in tiny.cpm.FAMILIES and ("tower_output", "before", "restore") in kinds:
        return "parked where the tower merges: see runtime/test_merger.py"
    return ""
