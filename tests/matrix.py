"""Which kinds of sites a family is not asked for, as it refuses them. The site's table of methods and families agrees."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable

import tiny

import foveate
from foveate import Host, Method, Site
from foveate.errors import FoveateError
from foveate.runtime.attach import kinds_of as layer_kinds

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
    reads = [site for site in sites if site.at == "decoder" and any(each.kind == "last_row" for each in site.asked)]
    in_many = {"attention in many layers"} if len(reads) > 2 else set()
    compared = [part for part in acting.parts() if part.temporal]
    places = {(site.at, "frames") for part in compared for site in part.sites(LLAVA) if site.at != "decode"}
    return frozenset({acting.parts()[0].positions, *in_many, *places}).union(*map(kinds_of, sites))


@functools.cache
def _slides(family: str) -> bool:
    """Whether some decoder layers of its tiny model slide."""
    return any("sliding" in kind for kind in layer_kinds(tiny.config(family)))


@functools.cache
def _has_experts(family: str) -> bool:
    """Whether FFNs of its tiny model are mixtures of experts."""
    text = tiny.config(family).get_text_config()
    return any(getattr(text, name, None) for name in ("num_experts", "n_routed_experts"))


def refused(family: str | None, kinds: Collection[Hashable]) -> str:
    """Why a family is not asked for one of these kinds; "" where it is."""
    if family is None:
        return ""
    spec, slides = foveate.list_families()[family], _slides(family)
    if slides and ("decode", "before", "reduce") in kinds:
        return "sliding layers have no decode sites"
    recurrent, virtual = bool(spec.decoder.recurrent), "virtual" in kinds
    if ("decoder", "before", "reuse") in kinds and (recurrent or slides):
        return "neighbouring layers are of different kinds: see answers/test_reuse.py"
    if ("decoder", "before", "channels") in kinds and _has_experts(family):
        return "a mixture of experts has no channels to choose"
    if recurrent and (virtual or "attention in many layers" in kinds):
        return "some layers carry a state and have no attention"
    if virtual and ("tower", "mid", "reduce") in kinds and spec.tower.arrangements:
        return "features are rearranged after the tower: see answers/test_virtual.py"
    known = spec.frames if spec.takes_videos else ()
    if any(kind[1:] == ("frames",) and kind[0] not in known for kind in kinds if isinstance(kind, tuple)):
        return "which frames are of one video is not known there"
    if spec.tower.resize is None and any(kind[:1] == ("pixels",) for kind in kinds if isinstance(kind, tuple)):
        return "its tower takes images of one size"
    if spec.tower.merger is not None and ("tower_output", "before", "restore") in kinds:
        return "parked where the tower merges: see runtime/test_merger.py"
    return ""
