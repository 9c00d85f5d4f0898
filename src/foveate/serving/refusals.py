"""Why a method cannot be served in a model, whatever the options of the engine: each reason in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foveate.errors import ConfigError, FoveateError, UnsupportedSiteError
from foveate.method import Method, Site
from foveate.models.family import Family
from foveate.runtime.engines import Action, Kind


def check(parts: Sequence[Method], actions: Sequence[Action], family: Family) -> None:
    """Raise `ConfigError` or `UnsupportedSiteError` if an engine cannot serve ``actions``, those of ``parts`` in a model."""
    for part in parts:
        _raise(_part(part))
    for action in actions:
        signals = (_signal(action, kind) for kind in action.asks)
        says = _action(action, action.method.served_with) or next(filter(None, signals), "")
        _raise(UnsupportedSiteError(f"{action.method.name()} {says}") if says else None)
    for part in parts:
        if part.scope == "sample" or part.pooled:
            raise ConfigError(
                f"{part.name()} has one ranking for all images of a prompt or all frames of a video, and a serving engine must "
                "know how many tokens of each stay: use a method that ranks each by itself"
            )
        if part.cut is not None:  # said last, as its advice helps only who is not refused for another reason
            raise ConfigError(
                f"{part.name()} decides by the content of an image how many tokens stay, those that reach its threshold, and a "
                "serving engine must know before: give keep in its place"
            )
    within = {a.method.name() for a in actions if inside(a.site)}
    if family.decoder.recurrent and within:
        raise UnsupportedSiteError(
            f"{', '.join(sorted(within))} acts inside the language model, and in this family most of its layers carry a state "
            "from token to token, of which this engine has one for all tokens: use a method that acts before the language model"
        )
    reducing = {a.method.name() for a in actions if in_tower(a.site) and a.site.action == "reduce"}
    if family.tower.arrangements and reducing:
        raise UnsupportedSiteError(
            f"{', '.join(sorted(reducing))} drops or merges tokens in the vision tower, and in this family images are cut into "
            "tiles that are put together after it, so how many are left depends on which they are: act after the tower, or "
            "restore them"
        )


def in_tower(site: Site) -> bool:
    """Tell whether a site is on the vision side."""
    return site.at in ("pixels", "tower", "tower_output")


def inside(site: Site) -> bool:
    """Tell whether a site is inside the language model, after its first layer has begun."""
    return site.at == "decoder" and site.layer > 0


def _raise(error: FoveateError | None) -> None:
    if error is not None:
        raise error


def _part(part: Method) -> FoveateError | None:
    name = part.name()
    if part.cut is None and not part.has_fixed_budget:
        instead = "use a method whose budget is fixed (`foveate methods` lists them)"
        return ConfigError(
            f"{name} decides by the content of an image how many tokens stay, and a serving engine must know before: "
            f"{f'give {part.served_with}' if part.served_with else instead}"
        )
    if part.across_images:
        return ConfigError(
            f"{part!r} decides across all images of a call, which in an engine are of several requests: set its options so "
            "that each image is decided alone, as by default"
        )
    if type(part).attach is not Method.attach:
        return UnsupportedSiteError(
            f"{name} changes a transformers model by hand, and this engine has others: use it with transformers"
        )
    if type(part).modules is not Method.modules:
        return UnsupportedSiteError(
            f"{name} has learned parts, which this engine does not load: use it with transformers"
        )
    if part.positions != "keep":
        return ConfigError(
            f'{name}: positions="{part.positions}" is not served, as a token has the same position in every layer and request '
            'of this engine: use positions="keep"'
        )
    return None


def _action(action: Action, option: str) -> str:
    """Say why an engine cannot let a method act at a site; empty: it can. ``option``: with which it does not act there."""
    site = action.site
    if site.action == "sight":
        return f"says at {site} who may attend to whom, and kernels of this engine take no such mask"
    if site.action == "append":
        return f"appends tokens at {site}, and " + (
            "a prompt of this engine has no slots for them"
            if site.at == "lm_entry"
            else "this engine says how many tokens each site has before there are any: append none there"
        )
    if site.action in ("remember", "inject"):
        return (
            f"keeps something of an image beside the KV cache, at {site}, and this engine keeps keys and values only: use it "
            "with transformers"
        )
    if site.at in ("decode", "cache"):
        when = "while decoding" if site.at == "decode" else "when a prompt has ended"
        instead = f"give {option}" if option else "use a method that acts before or inside the language model"
        return f"acts on the KV cache {when}, and in this engine other requests may share its blocks: {instead}"
    if site.at == "decoder" and site.action in ("park", "attend", "restore"):
        return (
            f"parks tokens in the decoder, at {site}, and in this engine a token that has left it does not come back: use a "
            "method that drops them"
        )
    if site.part:
        return f"changes a part of a layer, at {site}, which this engine runs whole for every token"
    if site.reuse is not None:
        return (
            f"reuses at {site} what another layer has, and this engine gives every layer pages of keys and values of its own: "
            "use transformers"
        )
    return ""


def _signal(action: Action, kind: Kind) -> str:
    """Say why an engine cannot give a method a signal; empty: it can."""
    site, within = action.site, inside(action.site)
    if kind.name == "text" or kind.signal.of == "text":
        why = (
            "a prompt may come in pieces, an image before its question"
            if within
            else "an engine encodes an image before it meets its question (and keeps it for the next one)"
        )
        return f"wants the text at {site}, but {why}: use a method that scores without text"
    if kind.signal.at or not (within or site.at.startswith("tower")):
        return (
            f"wants {kind.signal} at {site}, where an engine has the features of an image and their places only: use a method "
            "that asks for nothing there"
        )
    if within and not _paged(kind):
        return (
            f"wants {kind.signal} at {site}, and inside the language model this engine gives signals of the visual tokens "
            "themselves and of the attention to them: use another signal, or another method"
        )
    return ""


def _paged(kind: Kind) -> bool:
    """Tell whether a signal is read inside the language model: of visual tokens, in a layer that has run or is to come."""
    return bool(kind.paged) and replace(kind.signal, layer=None) == type(kind.signal)(kind.signal.kind)
