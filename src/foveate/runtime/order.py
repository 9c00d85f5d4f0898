"""The order of sites: what one may do after another, where tokens are parked in between."""

from __future__ import annotations

import math
from dataclasses import replace

from foveate.errors import UnsupportedSiteError
from foveate.runtime.context import Action


def moment(action: Action) -> tuple[float, bool]:
    """When an action happens in the tower or in the decoder; a stable sort leaves actions of one moment in the order of the
    sum."""
    site = action.site
    if site.at in ("tower", "decoder"):
        return site.layer, site.where == "mid"
    return {"pixels": -1.0}.get(site.at, math.inf), False


def check_parking(actions: list[Action], merged: float) -> None:
    """One method at a time has tokens parked, and until they are back no site reduces those that are left, nor does stock code
    merge rows, as it does after the sites before block ``merged`` of the tower."""
    lot: Action | None = None
    for action in actions:
        site, name = action.site, action.method.name()
        if site.action in ("attend", "restore") and (lot is None or lot.part != action.part):
            what = "restores" if site.action == "restore" else "attends to parked tokens"
            raise UnsupportedSiteError(f"{name}: {site} {what}, but nothing is parked there")
        if site.action == "restore" and lot is not None and moment(lot) <= (merged, False) < moment(action):
            raise UnsupportedSiteError(
                f"{name} parks tokens at {lot.site} and restores them at {site}, but this tower merges rows where block "
                f"{merged} begins, and parked ones would not be among them: restore at tower {merged} at the latest, or park "
                f"at tower {merged + 1} or later"
            )
        if site.action in ("park", "reduce", "append", "sight") and lot is not None:
            raise UnsupportedSiteError(
                f"{name} acts at {site} on what {lot.method.name()} has left, whose other tokens are parked since "
                f"{lot.site}: use one of the two, or let {name} act before that, after they are back (then name it "
                "later in the sum), or not in this part of the model, if its options allow"
            )
        if site.action in ("park", "restore"):
            lot = action if site.action == "park" else None
    if lot is not None:
        where = "tower" if lot.site.at.startswith("tower") else "decoder"
        raise UnsupportedSiteError(f"{lot.method.name()} parks tokens in the {where} and never restores them")


def check_new_in_tower(actions: list[Action], outside: list[Action], merged: float) -> None:
    """New tokens come when stock code has merged rows, as it does where block ``merged`` of the tower begins, and blocks before
    them say nothing of them to the sites of the tower that follow, nor to those ``outside``."""
    for i, action in enumerate(actions):
        first = action.site.layer
        if action.site.action != "append":
            continue
        if first <= merged < math.inf:
            raise UnsupportedSiteError(
                f"{action.method.name()} appends tokens at {action.site}, and this tower merges rows where block {merged} "
                f"begins, of which new ones are none: append at tower {merged + 1} or later"
            )
        for other in [*actions[i + 1 :], *outside]:
            inside = other.site.at.startswith("tower")
            needs = {"attention", "entered", "left"} if inside else {"tower"}
            kind = next((kind for kind in other.asks if needs & kind.needs and kind.layer < first), None)
            if kind is not None:
                raise UnsupportedSiteError(
                    f"{other.method.name()} wants {kind.signal} at {other.site}, of vision block {kind.layer}, and "
                    f"{action.method.name()} appends tokens at {action.site}, of which that block knows nothing: append before "
                    f"block {kind.layer}, or ask of block {first} or later"
                )


def check_sight_in_tower(actions: list[Action], merged: float) -> None:
    """Who sees whom in the tower is said of all tokens that there will be, each with rows of its own, and none set aside."""
    said: Action | None = None
    for action in actions:
        site, name = action.site, action.method.name()
        if site.action == "sight" and site.layer <= merged < math.inf:
            raise UnsupportedSiteError(
                f"{name} says at {site} who sees whom, and this tower merges rows where block {merged} begins: say it at tower "
                f"{merged + 1} or later"
            )
        if said is not None and site.action in ("append", "park"):
            what = (
                "appends tokens of which nothing is said"
                if site.action == "append"
                else "parks tokens that may be seen"
            )
            raise UnsupportedSiteError(
                f"{said.method.name()} says at {said.site} who sees whom, and {name} {what} at {site}: use one of the two, "
                "or let the other come first"
            )
        said = action if site.action == "sight" else said


def check_signals_of_parked(actions: list[Action]) -> None:
    """Attention that did not see parked tokens says nothing of them once they are back; one that did says nothing of the parts
    of its layer, where they are not."""
    parked: dict[int, Action] = {}  # layers without them -> who brings them back
    first: dict[int, int] = {}
    for action in (a for a in actions if a.site.action in ("park", "restore") and a.site.at == "decoder"):
        if action.site.action == "park":
            first[action.part] = action.site.layer
        else:
            parked |= dict.fromkeys(range(first[action.part], action.site.layer), action)
    seen = {a.site.layer for a in actions if a.site.at == "decoder" and a.site.action == "attend"}
    for action in actions:
        site, name = action.site, action.method.name()
        layers = {kind.layer for kind in action.asks if "attention" in kind.needs} if site.at == "decoder" else set()
        for layer in sorted(layers & parked.keys()):
            back = parked[layer]
            if site.layer >= back.site.layer and layer not in seen:
                raise UnsupportedSiteError(
                    f"{name} wants the attention of layer {layer} at {site}, of tokens that {back.method.name()} has parked "
                    f"until {back.site}, and that layer has not seen them: use layer {back.site.layer + 1} or later"
                )
            if site.part and site.layer < back.site.layer and layer in seen:
                raise UnsupportedSiteError(
                    f"{name} wants the attention of layer {layer} at {site}, which sees tokens that are parked there: ask at a "
                    "layer that does not attend to them"
                )


def with_memories(actions: list[Action]) -> list[Action]:
    """Give each action that injects what its own method has remembered last, up to its layer.

    Raises:
        UnsupportedSiteError: it has remembered nothing by then.
    """
    found: list[Action] = []
    for action in actions:
        site, name = action.site, action.method.name()
        if site.action == "remember":
            action = replace(action, memory=_memory(action))
        elif site.action == "inject":
            before = [a for a in actions if a.site.action == "remember" and a.part == action.part]
            before = [a for a in before if a.site.at == "lm_entry" or a.site.layer <= site.layer]
            if not before:
                raise UnsupportedSiteError(
                    f"{name} injects at {site}, and remembers nothing of an image by then: say Site.remember() as well"
                )
            last = max(before, key=lambda a: (a.site.at == "decoder", a.site.layer, a.order))
            action = replace(action, memory=_memory(last))
        found.append(action)
    return found


def _memory(action: Action) -> str:
    return f"{action.part} {action.method.name()} {action.site}"
