"""Put a method on a model: check the plan against the model, then hook it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.method import Host, Method, Site
from foveate.models.family import Family
from foveate.runtime.axes import count_text
from foveate.runtime.calls import Calls
from foveate.runtime.canvas import CanvasHooks
from foveate.runtime.compiled import forget_compiled, refuse_compiled
from foveate.runtime.context import Action, Context
from foveate.runtime.decoder import DecoderHooks
from foveate.runtime.denoising import check_step
from foveate.runtime.encodings import Encodings
from foveate.runtime.facts import Facts
from foveate.runtime.hooks import Hooks, refuse_without_weights
from foveate.runtime.hosts import base_of, kinds_of
from foveate.runtime.hosts import host_of as host_of
from foveate.runtime.hosts import host_with as host_with
from foveate.runtime.learned import Beside, with_modules
from foveate.runtime.order import (
    check_new_in_tower,
    check_parking,
    check_sight_in_tower,
    check_signals_of_parked,
    moment,
    with_memories,
)
from foveate.runtime.parts import check_parts
from foveate.runtime.ready import ReadySteps
from foveate.runtime.recalling import Reader
from foveate.runtime.recurrent import attention_of
from foveate.runtime.reuse import check_reuse
from foveate.runtime.shared import sources_of
from foveate.runtime.signals import kinds as _kinds  # noqa: F401 - finds them
from foveate.runtime.signals.kind import KINDS, Asker
from foveate.runtime.stored import Memories
from foveate.runtime.tower import TowerHooks
from foveate.runtime.trace import Trace
from foveate.runtime.virtual import check_virtual, is_virtual


class Runtime:
    """A method attached to a model, and the way to take it off."""

    def __init__(self, model: nn.Module, family: Family, method: Method) -> None:
        config: Any = model.config
        base = base_of(model, family)
        refuse_compiled(model)
        Facts(family).check_names(base, config)
        self.calls = Calls()
        self.context = Context(self.calls)
        self.host = host_of(model, family)
        blocks = family.tower.blocks_of(base.get_submodule(family.tower.module))
        layers: Any = base.get_submodule(family.decoder.module).get_submodule(family.decoder.layers)
        attends = [attention_of(layer, family.decoder) is not None for layer in layers]
        method, self.modules = with_modules(method.resolve(self.host), self.host)
        actions = plan(method, self.host, family, config, len(blocks), len(layers), attends)
        check_parts(actions, list(layers), Facts(family))
        decoder: Any = base.get_submodule(family.decoder.module)
        sources = sources_of(layers, family.decoder, decoder.config)
        _check_sight(actions, attends, sources)
        check_reuse(actions, layers, family.decoder, kinds_of(config), sources)
        check_virtual(actions, family, layers, sources)
        _check_append(actions, kinds_of(config), sources)
        inside = [a for a in actions if a.site.at in ("pixels", "tower", "tower_output")]
        self.actions = actions
        self.beside = _beside(method, actions, blocks, layers)
        outside = [a for a in actions if a not in inside]
        self.tower = TowerHooks(base, config, family, inside, self.context, outside)
        holes = any(a.site.action == "reduce" for a in inside)
        self.decoder = DecoderHooks(base, config, family, outside, self.context, holes)
        self.decoder.arguments.whole = model
        self.decoder.arguments.renumber = method.parts()[0].positions not in ("keep", "virtual")
        self.decoder.stand_for_members = is_virtual(method)
        self.canvas = CanvasHooks(model, family, self.decoder)
        drops = self.decoder.reduces
        self.encodings = Encodings(model, base, family, self.context, acts=bool(inside), drops=drops)
        before = {a.part: a.method for a in inside}.values()
        reader = _reader(outside, layers, attends)
        self.memories = Memories(model, base, self.encodings, self.host, tuple(before), reader)
        self.hooks = Hooks(self.decoder.calls.steady)
        try:
            for part in (self.tower.tower, base):
                self.hooks.pre(part, refuse_without_weights(part), rests=part is base)
            for part in (self.tower.tower, self.decoder.model):
                self.hooks.pre(part, lambda *_: self.calls.check_begun(base), rests=part is self.decoder.model)
            if self.beside:
                self.hooks.pre(self.tower.tower, self._follow)
                self.hooks.pre(base, self._follow)
            self.tower.attach(self.hooks)
            self.encodings.attach(self.hooks)
            self.memories.attach(self.hooks)
            ReadySteps(self.decoder, self.hooks).attach(model)
            count_text(self.decoder.model, list(layers), family.decoder, self.hooks)
            self.decoder.attach(self.hooks)
            self.canvas.attach(self.hooks)
            self._count_head(model)
            for each in method.parts():
                each.attach(base, self.host, self.hooks)
            self.decoder.attach_norm(self.hooks)
            # They run before all others, so that these see whether the method was taken off while they waited, and come last,
            # so that a thread that enters meets all of them.
            self.hooks.pre(self.tower.tower, lambda *_: self.calls.enter("tower"), first=True)
            self.hooks.pre(base, lambda *_: self.calls.enter("model"), first=True, rests=True)
        except BaseException:
            self.hooks.remove()
            raise
        forget_compiled()

    def _count_head(self, model: Any) -> None:
        head = model.get_output_embeddings()

        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.context.trace.head_rows += args[0].shape[:-1].numel()

        if head is not None:
            self.hooks.pre(head, count, rests=True)

    def _follow(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        for each in self.beside:
            each.follow()

    def remove(self) -> None:
        """Take every hook off again."""
        self.hooks.remove()

    def last(self) -> Trace | None:
        """What happened in the last call that has ended, of whatever thread; or in the tower alone, if this thread called it
        since. None: there was none."""
        mine = self.context.trace
        return mine if mine.features and not mine.prefill else self.calls.last


def _reader(actions: list[Action], layers: Any, attends: list[bool]) -> Reader | None:
    """The method of the language model that appends to an image what is kept of it, if one does."""
    stores = [a for a in actions if a.site.action == "append" and a.method.stores == "appended"]
    if not stores:
        return None
    others = dict.fromkeys(a.method.name() for a in actions if a.part != stores[0].part)
    return Reader(stores[0].method, layers[-1], tuple(others), attends.count(False))


def _beside(method: Method, actions: list[Action], blocks: Any, layers: Any) -> list[Beside]:
    """Learned parts, beside the blocks and layers where they act."""
    found: dict[int, list[tuple[Site, nn.Module]]] = {}
    for action in actions:
        site = action.site
        at = blocks if site.at in ("pixels", "tower", "tower_output") else layers
        module = at[-1 if site.at == "tower_output" else site.layer]
        found.setdefault(action.part, []).append((site, module))
    return [
        Beside(part.name(), part.learned, found.get(number, [(Site("lm_entry"), layers[0])]))
        for number, part in enumerate(method.parts())
        if "_learned" in vars(part)
    ]


def plan(
    method: Method,
    host: Host,
    family: Family,
    config: Any,
    blocks: int,
    layers: int,
    attends: Sequence[bool] | None = None,
) -> list[Action]:
    """Every site of every part of the method, with its layer resolved and checked.

    The tower has ``blocks``, read or not; the language model ``layers``, with keys of their own or not. ``attends`` says which
    of these have attention, if it is known.
    """
    parts = method.resolve(host).parts()
    policies = {part.positions for part in parts}
    if len(policies) > 1:
        raise ConfigError(
            f"methods of one sum must agree on positions, not {', '.join(sorted(policies))}: give all of them the same"
        )
    actions: list[Action] = []
    for number, part in enumerate(parts):
        sites = part.sites(host)
        by_hand = type(part).attach is not Method.attach
        listed = isinstance(sites, (list, tuple)) and all(isinstance(site, Site) for site in sites)
        if listed and not (sites or by_hand or part.idle):
            _check_seen(part, "vision blocks", family)
        if not listed or not (sites or by_hand or part.idle):
            raise ConfigError(f"{part.name()}.sites returned {sites!r}, expected a list of at least one Site")
        for site in sites:
            if site.at in ("pixels", "tower", "tower_output"):
                _check_seen(part, site, family)
            site = replace(site, layer=_layer(site, host, blocks, layers))
            if site.reuse is not None:
                source = _layer(Site("decoder", site.reuse.source), host, blocks, layers)
                site = replace(site, reuse=replace(site.reuse, source=source))
            if site.at == "decode" and host.layers < layers:
                raise UnsupportedSiteError(
                    f"{part.name()}: decode sites need layers with keys of their own, and those of {host.family!r} from "
                    f"{host.layers} on attend to the keys of earlier ones: reduce the prompt, at a decoder site"
                )
            _check(part, site, host, family, config)
            if attends is not None:
                _check_attention(part, site, attends)
            by = Asker(part.name(), site, host, family, config, attends, part.positions)
            asks = tuple(KINDS[signal.kind].asked_by(signal, by) for signal in site.asked)
            actions.append(Action(site, part, len(actions), number, asks))
    actions = with_memories(_with_history(actions))
    merger = family.tower.merger
    merged = math.inf if merger is None or merger.rows(config) == 1 else merger.block(config)
    in_order = sorted(actions, key=moment)
    in_tower = [a for a in in_order if a.site.at.startswith("tower")]
    check_parking(in_tower, merged)
    check_new_in_tower(in_tower, [a for a in in_order if a not in in_tower], merged)
    check_sight_in_tower(in_tower, merged)
    in_decoder = [a for a in in_order if a.site.at == "decoder" and not a.site.part]
    check_parking(in_decoder, math.inf)
    check_signals_of_parked(in_order)
    for side in (in_tower, [a for a in actions if a not in in_tower]):
        sighted = {action.part: action.method.name() for action in side if action.site.action == "sight"}
        if len(sighted) > 1:
            names = " and ".join(sighted.values())
            raise UnsupportedSiteError(
                f"only one method of a sum can say who sees whom, and {names} do: choose one of them"
            )
    _check_caches(actions)
    _check_appended(actions)
    return actions


def _check_caches(actions: list[Action]) -> None:
    """One decode site at most, which hides the same tokens from all layers after it: they must hold the same ones. So must
    layers of which one has no keys in its cache, and attends with those in the cache of the other."""
    steps = [action for action in actions if action.site.at == "decode"]
    if len(steps) > 1:
        raise UnsupportedSiteError("only one decode site can act on a model: choose one of the methods")
    for action in (action for action in actions if action.site.at == "cache"):
        site, name = action.site, action.method.name()
        for other in actions:
            first, reuse = other.site.layer - 1, other.site.reuse
            if other.site.at == "decode" and site.layer >= first:
                raise UnsupportedSiteError(
                    f"{other.method.name()} chooses at {other.site} for the caches of all layers from {first} on, and {name} "
                    f"acts at {site}, so these hold different tokens: use one of the two"
                )
            if reuse is not None and reuse.drops_keys and site.layer in (other.site.layer, reuse.source):
                raise UnsupportedSiteError(
                    f"{name} acts at {site}, whose keys {other.method.name()} shares between two layers, at {other.site}: act "
                    "on the caches of other layers"
                )


def _check_attention(method: Method, site: Site, attends: Sequence[bool]) -> None:
    """Where some decoder layers have no attention, there is nothing to hide from them, nor to free."""
    if site.at == "cache" and not attends[site.layer]:
        can = ", ".join(str(i) for i, one in enumerate(attends) if one)
        raise UnsupportedSiteError(
            f"{method.name()} acts at {site}, but that layer carries a state and has no keys to free: in this model use layer "
            f"{can}"
        )
    if site.at == "decode" and not any(attends[site.layer :]):
        raise UnsupportedSiteError(
            f"{method.name()} acts at {site}, but no layer from there on has attention: use layer "
            f"{max(i for i, one in enumerate(attends) if one)} or an earlier one"
        )


def _check_sight(actions: list[Action], attends: list[bool], sources: list[int]) -> None:
    """Tell who sees whom is said where an attention comes after it, and before layers whose keys others attend to."""
    lent = [source for i, source in enumerate(sources) if source != i]
    for action in actions:
        site, name = action.site, action.method.name()
        if site.action != "sight" or site.at == "tower":
            continue
        if lent and site.at == "decoder" and site.layer > min(lent):
            raise UnsupportedSiteError(
                f"{name} says at {site} who sees whom, but later layers of this model attend to the keys of layer {min(lent)}: "
                "say it there or earlier"
            )
        if not any(attends[site.layer :]):
            raise UnsupportedSiteError(f"{name} says at {site} who sees whom, but no layer from there on has attention")


def _check_appended(actions: list[Action]) -> None:
    """Tokens are appended once, before anybody says who sees them."""
    entry = [action for action in actions if action.site.action in ("append", "sight") and action.site.at == "lm_entry"]
    appends = [action for action in entry if action.site.action == "append"]
    if len(appends) > 1:
        names = " and ".join(action.method.name() for action in appends)
        raise UnsupportedSiteError(f"only one site can append tokens at lm_entry, and {names} do: choose one of them")
    if appends and entry[0] is not appends[0]:
        raise UnsupportedSiteError(
            f"{entry[0].method.name()} says at {entry[0].site} who sees whom, before {appends[0].method.name()} appends tokens "
            "of which it says nothing: append them first"
        )


def _check_append(actions: list[Action], kinds: Sequence[str], sources: list[int]) -> None:
    """Tokens that are at no place of the full sequence of their own fit where every layer keeps all that it has."""
    for action in actions:
        if action.site.action != "append" or action.site.at != "lm_entry":
            continue
        if any("sliding" in kind for kind in kinds):
            raise UnsupportedSiteError(
                f"{action.method.name()} appends tokens, and a sliding layer of this model has no room for more than its window"
            )
        if sources != list(range(len(sources))):
            raise UnsupportedSiteError(
                f"{action.method.name()} appends tokens, and later layers of this model attend to the keys of earlier ones, "
                "where they could not be told from the token that they follow"
            )


def _with_history(actions: list[Action]) -> list[Action]:
    """The same actions, each with how many of its own part come directly before it, in the tower or in the language model.

    (At cache sites none: the tokens of each layer's cache are its own.)
    """

    def when(action: Action) -> tuple[int, float, bool, int]:
        language = action.site.at in ("lm_entry", "decoder", "decode")
        layer = (
            (float(action.site.layer) if action.site.at == "decoder" else -1.0, False) if language else moment(action)
        )
        return language, *layer, action.order

    found, last, run, parked = {}, None, 0, 0
    for action in sorted(actions, key=when):
        found[action.order] = action
        if action.site.part or action.site.action in ("attend", "reuse") or action.site.at == "cache":  # nobody leaves
            continue
        place = when(action)[0], action.part
        run = run if place == last else 0
        found[action.order], last = replace(action, after=run), place
        if action.site.action == "park":
            parked = run
        run += action.site.action not in ("sight", "append", "remember")  # which leave all tokens where they are
        if action.site.action == "restore":  # the tokens are those that there were
            run = parked
    return [found[action.order] for action in actions]


def _check_seen(method: Method, where: object, family: Family) -> None:
    """Refuse what acts on a vision side of which nothing is known."""
    if family.tower.unseen:
        raise UnsupportedSiteError(
            f"{method.name()} acts at {where}, and of {family.name!r} foveate knows the language model alone, as "
            f"{family.tower.unseen}: act at lm_entry or later"
        )


def _layer(site: Site, host: Host, blocks: int, layers: int) -> int:
    if site.at not in ("tower", "decoder", "decode", "cache"):
        return 0
    n = host.blocks if site.at == "tower" else host.layers
    layer = site.layer + n if site.layer < 0 else site.layer
    if not 0 <= layer < n:
        what = "vision blocks that reach the language model" if site.at == "tower" else "decoder layers"
        note = ""
        if site.at == "tower" and n <= layer < blocks:
            note = " (features are taken before the tower's last block, so a reduction there would change nothing)"
        if site.at != "tower" and n <= layer < layers:
            what = "decoder layers with keys of their own"
            note = f" (the other {layers - n} attend to keys of these, where what leaves later would still be seen)"
        raise UnsupportedSiteError(
            f"there is no {site.at} layer {site.layer}: the model has {n} {what}, 0 to {n - 1}{note}"
        )
    return layer


#: what may happen at each place
ACTIONS: dict[str, set[str]] = {
    "pixels": {"reduce"},
    "tower": {"reduce", "park", "attend", "restore", "append", "sight"},
    "tower_output": {"reduce", "restore"},
    "lm_entry": {"reduce", "sight", "append", "remember"},
    "decoder": {"reduce", "park", "attend", "restore", "skip", "channels", "sight", "reuse", "remember", "inject"},
    "decode": {"reduce"},
    "cache": {"reduce"},
}


def _check(method: Method, site: Site, host: Host, family: Family, config: Any) -> None:
    name, unit = method.name(), family.tower.unit(config)
    check_step(name, site, host)
    if method.scope == "sample" and site.at not in ("lm_entry", "decoder", "decode", "cache"):
        raise UnsupportedSiteError(
            f"{name} has one budget for all images of a prompt, and which these are is not known at {site}: act where they "
            "enter the language model, or later"
        )
    if method.temporal and site.at not in host.frames | {"decode"}:
        why = f"known at {', '.join(sorted(host.frames))} only" if host.frames else "known nowhere"
        raise UnsupportedSiteError(
            f"{name} compares frames of one video, and in {host.family!r} which frames are of one video is {why}, not at {site}"
        )
    if site.at == "pixels" and family.tower.resize is None:
        raise UnsupportedSiteError(
            f"{name}: the vision tower of {host.family!r} takes images of one size only, so they cannot shrink at {site}: "
            "act in the tower or after it"
        )
    if site.at == "decode" and any("sliding" in kind for kind in kinds_of(config)[site.layer - 1 :]):
        raise UnsupportedSiteError(
            f"{name}: decode sites need full-attention layers, not sliding ones as in {host.family!r}"
        )
    if site.at == "cache" and "sliding" in next(iter(kinds_of(config)[site.layer : site.layer + 1]), ""):
        raise UnsupportedSiteError(
            f"{name}: {site} is a sliding layer, which forgets by itself: act on the full-attention layers of {host.family!r}"
        )
    if site.action in ("park", "restore") and site.action not in ACTIONS[site.at]:
        raise UnsupportedSiteError(f"{name}: tokens can be parked and restored before a layer, not at {site}")
    if site.action not in ACTIONS[site.at]:
        can = ", ".join(sorted(ACTIONS[site.at])) or "nothing yet"
        raise UnsupportedSiteError(f"{name}: {site.action!r} cannot happen at {site}, only {can}")
    if site.at == "tower" and site.unit == "patch" and site.action == "reduce" and unit > 1:
        raise UnsupportedSiteError(
            f"{name} removes single patches, but {host.family!r} joins {unit} patches to one token: "
            'use unit="merge", or park the patches and restore them'
        )
    if method.positions == "native" and site.at in ("decoder", "decode", "cache"):
        raise ConfigError(
            f'{name} acts inside the language model, where positions exist already: use positions="keep" or "renumber"'
        )
