"""Put a method on a model: check the plan against the model, then hook it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from foveate.errors import ConfigError, UnsupportedModelError, UnsupportedSiteError
from foveate.method import Host, Method, Site
from foveate.models.family import Family
from foveate.runtime.context import Action, Context, Hooks
from foveate.runtime.decoder import DecoderHooks
from foveate.runtime.tower import TowerHooks


class Runtime:
    """A method attached to a model, and the way to take it off."""

    def __init__(self, model: nn.Module, family: Family, method: Method) -> None:
        config: Any = model.config
        base = _base(model, family)
        _refuse_compiled(model)
        self.context = Context()
        self.host = host_of(model, family)
        actions = _plan(method, self.host, family, config)
        inside = [a for a in actions if a.site.at in ("pixels", "tower", "tower_output")]
        self.actions = actions
        self.tower = TowerHooks(base, config, family, inside, self.context)
        holes = any(a.site.action == "reduce" for a in inside)
        outside = [a for a in actions if a not in inside]
        self.decoder = DecoderHooks(base, config, family, outside, self.context, holes)
        self.decoder.arguments.renumber = method.parts()[0].positions != "keep"
        self.hooks = Hooks()
        try:
            self.tower.attach(self.hooks)
            self.decoder.attach(self.hooks)
            self._count_head(model)
        except BaseException:
            self.hooks.remove()
            raise

    def _count_head(self, model: Any) -> None:
        head = model.get_output_embeddings()

        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.context.trace.head_rows += args[0].shape[:-1].numel()

        if head is not None:
            self.hooks.pre(head, count)

    def remove(self) -> None:
        """Take every hook off again."""
        self.hooks.remove()


def _base(model: nn.Module, family: Family) -> nn.Module:
    try:
        return model.get_submodule(family.base)
    except AttributeError:
        raise UnsupportedModelError(
            f"{type(model).__name__} is a part of a {family.model_type!r} model: give the whole one, with its language-model "
            "head (AutoModelForImageTextToText)"
        ) from None


def host_of(model: Any, family: Family) -> Host:
    """What a method may know about a model."""
    base, config = _base(model, family), model.config
    layers: Any = base.get_submodule(family.decoder.module).get_submodule(family.decoder.layers)
    return Host(
        family=family.model_type,
        blocks=family.tower.last_block(config) + 1,
        layers=len(layers),
        has_cls=family.tower.leading > 0,
    )


def _plan(method: Method, host: Host, family: Family, config: Any) -> list[Action]:
    """Every site of every part of the method, with its layer resolved and checked."""
    policies = {part.positions for part in method.parts()}
    if len(policies) > 1:
        raise ConfigError(f"methods of one sum must agree on positions, not {', '.join(sorted(policies))}")
    actions: list[Action] = []
    for part in method.parts():
        parked = 0
        sites = part.sites(host)
        if not isinstance(sites, (list, tuple)) or not sites or not all(isinstance(site, Site) for site in sites):
            raise ConfigError(f"{part.name()}.sites returned {sites!r}, expected a list of at least one Site")
        for site in sites:
            site = replace(site, layer=_layer(site, host))
            _check(part, site, host, family, config)
            parked += {"park": 1, "restore": -1, "reduce": 0}[site.action]
            if parked < 0:
                raise UnsupportedSiteError(f"{part.name()}: {site} restores, but nothing is parked there")
            actions.append(Action(site, part, len(actions)))
        if parked:
            raise UnsupportedSiteError(f"{part.name()} parks tokens in the tower and never restores them")
    if sum(action.site.at == "decode" for action in actions) > 1:
        raise UnsupportedSiteError("only one decode site can act on a model: choose one of the methods")
    return actions


def _layer(site: Site, host: Host) -> int:
    if site.at not in ("tower", "decoder", "decode"):
        return 0
    n = host.blocks if site.at == "tower" else host.layers
    layer = site.layer + n if site.layer < 0 else site.layer
    if not 0 <= layer < n:
        what = "vision blocks that reach the language model" if site.at == "tower" else "decoder layers"
        note = ""
        if site.at == "tower" and host.has_cls:
            note = " (features are taken before the tower's last block, so a reduction there would change nothing)"
        raise UnsupportedSiteError(
            f"there is no {site.at} layer {site.layer}: the model has {n} {what}, 0 to {n - 1}{note}"
        )
    return layer


#: what each place can tell a method
_SIGNALS: dict[str, set[str]] = {
    "pixels": set(),
    "tower": {"residual", "keys", "values", "received", "cls_row"},
    "tower_output": {"residual", "keys", "values", "received", "cls_row"},
    "lm_entry": {"text"},
    "decoder": {"residual", "keys", "values", "received", "last_row", "text_rows", "text"},
    "decode": {"keys", "values", "last_row"},
}


def _check(method: Method, site: Site, host: Host, family: Family, config: Any) -> None:
    name, asked = method.name(), set(site.signals)
    unit = family.tower.unit(config)
    if "cls_row" in asked and not host.has_cls:
        raise UnsupportedSiteError(f"{name} wants cls_row, but the tower of {host.family!r} has no CLS token")
    if asked - _SIGNALS[site.at]:
        can = ", ".join(sorted(_SIGNALS[site.at])) or "no signal"
        note = "; no text reaches the vision tower" if site.at.startswith("tower") else ""
        raise UnsupportedSiteError(
            f"{name}: {site} cannot give {', '.join(asked - _SIGNALS[site.at])}, only {can}{note}"
        )
    if site.layer == 0 and site.where == "before" and site.at in ("tower", "decoder") and asked - {"text"}:
        raise UnsupportedSiteError(
            f"{name}: {site} has no layer before it to give {', '.join(asked)}: use layer 1 or later"
        )
    if site.at == "decode" and site.layer == 0:
        raise UnsupportedSiteError(f"{name}: decode sites start at layer 1, where an attention has been computed")
    if site.where == "mid" and site.at != "tower":
        raise UnsupportedSiteError(f'{name}: where="mid" is inside a vision block; {site.at} has no such place')
    if site.action != "reduce" and site.at not in ("tower", "tower_output"):
        raise UnsupportedSiteError(f"{name}: only the tower can park and restore tokens, not {site}")
    if site.at == "tower" and site.unit == "patch" and site.action == "reduce" and unit > 1:
        raise UnsupportedSiteError(
            f"{name} removes single patches, but {host.family!r} joins {unit} patches to one token: "
            'use unit="merge", or park the patches and restore them'
        )
    if method.positions == "native" and site.at in ("decoder", "decode"):
        raise ConfigError(
            f'{name} reduces inside the language model, where positions exist already: use positions="renumber"'
        )


def _refuse_compiled(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule":
            raise UnsupportedModelError(
                f"{type(module).__name__} is compiled, and compiled code ignores hooks that come later: compress the plain "
                "model first, then compile it"
            )
