"""Which kinds of sites a family is not asked for, as it refuses them. The site's table of methods and families agrees."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable

import tiny

import foveate
from foveate import Host, Method, Site
from foveate.errors import FoveateError

#: signals that are read of the attention of a layer
AHEAD = {"next_row", "next_rows", "unrotated_row"}
OF_ATTENTION = {"keys", "values", "last_row", "text_rows", "received"}
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
    asked = [(site.at, site.layer, each) for site in sites for each in site.asked]
    reads = {layer for at, layer, each in asked if at == "decoder" and each.kind == "last_row"}
    more: set[Hashable] = {"attention in many layers"} if len(reads) > 2 else set()
    here = [(layer - 1, each) for at, layer, each in asked if at == "decoder" and each.kind in OF_ATTENTION]
    here += [(layer, each) for at, layer, each in asked if at == "decoder" and each.kind in AHEAD]
    if any((layer if each.layer is None else each.layer) in tiny.packed.LINEAR for layer, each in here):
        more.add("attention of a recurrent layer")
    blocks = [each.layer for at, _, each in asked if at == "tower_output" and each.layer is not None]
    if any(0 <= block < tiny.BLOCKS - 1 for block in blocks):
        more.add("blocks before a merger")
    if sum(site.at == "cache" for site in sites) == LLAVA.layers:
        more.add("every cache")
    more |= {"states of the tower"} if any(each.at == "tower" for _, _, each in asked) else set()
    more |= {"the text alone"} if any(each.kind == "text_pass" for _, _, each in asked) else set()
    compared = [part for part in acting.parts() if part.temporal]
    places = {(site.at, "frames") for part in compared for site in part.sites(LLAVA) if site.at != "decode"}
    return frozenset({acting.parts()[0].positions, *more, *places}).union(*map(kinds_of, sites))


@functools.cache
def structure(method: Method) -> frozenset[Hashable]:
    """What the runtime makes of a method, whatever it chooses: kinds of sites, what is read there, how it ranks and weighs."""
    try:
        sites = method.sites(LLAVA)
    except FoveateError:
        return kinds_of(method)
    reads = {(site.at, "reads", each.kind) for site in sites for each in site.asked}
    places = [site.at for site in sites if site.action == "reduce"]
    cuts = {(at, "several") for at in places if places.count(at) > 1} | {
        (site.at, "nothing is left") for site in sites if site.keep == 0
    }
    parts = [
        (part.proportional_attention, part.pooled, part.fixed_budget, part.training_free) for part in method.parts()
    ]
    return kinds_of(method).union(reads, cuts, parts)


@functools.cache
def _has_experts(family: str) -> bool:
    """Whether FFNs of its tiny model are mixtures of experts."""
    text = tiny.config(family).get_text_config()
    return any(getattr(text, name, None) for name in ("num_experts", "n_routed_experts"))


def refused(family: str | None, kinds: Collection[Hashable]) -> str:
    """Why a family is not asked for one of these kinds; "" where it is."""
    if family is None:
        return ""
    spec, slides = foveate.list_families()[family], tiny.slides(family)
    if slides and ("decode", "before", "reduce") in kinds:
        return "sliding layers have no decode sites"
    if slides and "every cache" in kinds:
        return "sliding layers forget by themselves"
    if spec.tower.arrangements and "states of the tower" in kinds:
        return "rows of the tower are no tokens of the language model there"
    if family in tiny.gemma4.FAMILIES and "the text alone" in kinds:
        return "its layers are given something of every token"
    recurrent, virtual = bool(spec.decoder.recurrent), "virtual" in kinds
    if ("decoder", "before", "reuse") in kinds and (recurrent or slides):
        return "neighbouring layers are of different kinds: see answers/test_reuse.py"
    if ("decoder", "before", "channels") in kinds and _has_experts(family):
        return "a mixture of experts has no channels to choose"
    if recurrent and (virtual or {"attention in many layers", "attention of a recurrent layer"} & set(kinds)):
        return "some layers carry a state and have no attention"
    if virtual and ("tower", "mid", "reduce") in kinds and spec.tower.arrangements:
        return "features are rearranged after the tower: see answers/test_virtual.py"
    known = spec.frames if spec.takes_videos else ()
    if any(kind[1:] == ("frames",) and kind[0] not in known for kind in kinds if isinstance(kind, tuple)):
        return "which frames are of one video is not known there"
    if spec.tower.resize is None and any(kind[:1] == ("pixels",) for kind in kinds if isinstance(kind, tuple)):
        return "its tower takes images of one size"
    if spec.tower.merger is not None and "blocks before a merger" in kinds:
        return "its tower merges rows after them: see runtime/test_merger.py"
    if spec.tower.merger is not None and ("tower", "before", "append") in kinds:
        return "its tower merges rows after them, of which new ones are none: see answers/test_append_tower.py"
    if spec.tower.merger is not None and ("tower_output", "before", "restore") in kinds:
        return "parked where the tower merges: see runtime/test_merger.py"
    return ""
