"""What a method will do to an image, known before anything runs.

An engine gives every prompt its slots before the vision tower has seen the image. A method with a fixed budget decides how
many tokens stay by the grid alone; so it is asked, at its sites one after another, about made-up tokens on that grid, and the
counts of its answers are those of every image of that shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.method import Host, Method
from foveate.models.family import Family
from foveate.runtime.engines import Action, Kind, actions_of, frames, made_up, tokens_of
from foveate.tokens import Spans, Tokens

Grids = tuple[tuple[int, int, int], ...]
Counts = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """An image or video of a prompt.

    Attributes:
        grid: what the language model sees of it, ``(frames, height, width)`` of each view; every frame is a span.
        tower: the same of the vision tower, in units.
        gaps: features that stand for no patch (CLS, newlines) and always stay: ``(cells of grid before them, how many)``.
    """

    grid: Grids
    tower: Grids
    gaps: tuple[tuple[int, int], ...] = ()

    @property
    def cells(self) -> int:
        """Tokens before any reduction."""
        return sum(t * h * w for t, h, w in self.grid)

    @property
    def features(self) -> int:
        """The same, and the features that stand for no patch."""
        return self.cells + sum(n for _, n in self.gaps)

    @property
    def spans(self) -> Spans:
        """Of what the language model sees."""
        return frames(list(self.grid))

    def kept(self, counts: Counts) -> list[int]:
        """Tell which of its features a prompt has if that many of each span stay, as if they were the first ones."""
        first = [cell < count for size, count in zip(self.spans.sizes, counts) for cell in range(size)]
        return [place for place, cell in enumerate(self.patches().tolist()) if cell < 0 or first[cell]]

    def patches(self) -> Tensor:
        """``(features,)`` int64, the cell that each feature stands for; -1: no patch."""
        return _patches(self.cells, self.gaps)


@lru_cache(maxsize=4096)
def _patches(cells: int, gaps: tuple[tuple[int, int], ...]) -> Tensor:
    parts, start = [], 0
    for end, n in (*gaps, (cells, 0)):
        parts += [torch.arange(start, end), torch.full((n,), -1)]
        start = end
    return torch.cat(parts)


@dataclass(frozen=True)
class Plan:
    """A method in a model.

    Attributes:
        tower: actions inside the vision tower, in order.
        entry: actions on the features, before the language model: they shorten the prompt.
        inner: actions before decoder layers from 1 on, in order.
    """

    method: Method
    tower: tuple[Action, ...]
    entry: tuple[Action, ...]
    inner: tuple[Action, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which tokens leave, ascending."""
        return tuple(sorted({action.site.layer for action in self.inner}))

    def shortens(self, item: Item) -> bool:
        """Tell whether actions before the language model act on this image.

        One of which nothing would be left (a share of exactly 0) keeps all of its tokens: a prompt must have a place for it.
        """
        return _counts(self, item).shortened

    def tower_counts(self, item: Item) -> Counts:
        """Tokens of each span that the vision tower leaves, where it is shortened."""
        return _counts(self, item).tower

    def entry_counts(self, item: Item) -> Counts:
        """Tokens of each span that reach the language model."""
        return _counts(self, item).entry

    def entry_history(self, item: Item) -> tuple[Counts, ...]:
        """Tokens of each span before each of the actions on the features: what later cuts of a schedule are a share of."""
        return _counts(self, item).history

    def inner_counts(self, item: Item) -> tuple[Counts, ...]:
        """Tokens of each span that are left from each of `layers` on."""
        return _counts(self, item).inner


def make_plan(method: Method, host: Host, family: Family, config: Any) -> Plan:
    """Return the plan of a method with a fixed budget.

    Raises:
        ConfigError: its budget depends on the content.
        UnsupportedSiteError: it acts where an engine cannot let it.
    """
    for part in method.resolve(host).parts():
        if not part.has_fixed_budget:
            raise ConfigError(
                f"{part.name()} decides by the content of an image how many tokens stay, and a serving engine must know "
                "before: use a method whose budget is fixed (`foveate methods` lists them)"
            )
        if part.across_images:
            raise ConfigError(
                f"{part!r} decides across all images of a call, which in an engine are of several requests: set its options so "
                "that each image is decided alone, as by default"
            )
        if type(part).attach is not Method.attach:
            raise UnsupportedSiteError(
                f"{part.name()} changes a transformers model by hand, and this engine has others: use it with transformers"
            )
        if type(part).modules is not Method.modules:
            raise UnsupportedSiteError(
                f"{part.name()} has learned parts, which this engine does not load: use it with transformers"
            )
    actions = actions_of(method, host, family, config)
    for action in actions:
        site = action.site
        if site.action == "sight":
            raise UnsupportedSiteError(
                f"{action.method.name()} says at {site} who may attend to whom, and kernels of this engine take no such mask"
            )
        if site.action == "append":
            raise UnsupportedSiteError(
                f"{action.method.name()} appends tokens at {site}, and "
                + (
                    "a prompt of this engine has no slots for them"
                    if site.at == "lm_entry"
                    else "this engine says how many tokens each site has before there are any: append none there"
                )
            )
        if site.action in ("remember", "inject"):
            raise UnsupportedSiteError(
                f"{action.method.name()} keeps something of an image beside the KV cache, at {site}, and this engine keeps "
                "keys and values only: use it with transformers"
            )
        if site.at in ("decode", "cache"):
            when = "while decoding" if site.at == "decode" else "when a prompt has ended"
            raise UnsupportedSiteError(
                f"{action.method.name()} acts on the KV cache {when}, and in this engine other requests may share its blocks: "
                "use a method that acts before or inside the language model"
            )
        if site.at == "decoder" and site.action in ("park", "attend", "restore"):
            raise UnsupportedSiteError(
                f"{action.method.name()} parks tokens in the decoder, at {site}, and in this engine a token that has left it "
                "does not come back: use a method that drops them"
            )
        if site.part:
            raise UnsupportedSiteError(
                f"{action.method.name()} changes a part of a layer, at {site}, which this engine runs whole for every token"
            )
        if site.reuse is not None:
            raise UnsupportedSiteError(
                f"{action.method.name()} reuses at {site} what another layer has, and this engine gives every layer pages of "
                "keys and values of its own: use transformers"
            )
        inside = site.at == "decoder" and site.layer > 0
        if any(kind.name == "text" or kind.signal.of == "text" for kind in action.asks):
            why = (
                "a prompt may come in pieces, an image before its question"
                if inside
                else "an engine encodes an image before it meets its question (and keeps it for the next one)"
            )
            raise UnsupportedSiteError(
                f"{action.method.name()} wants the text at {site}, but {why}: use a method that scores without text"
            )
        for kind in action.asks:
            if kind.signal.at or (not inside and not site.at.startswith("tower")):
                raise UnsupportedSiteError(
                    f"{action.method.name()} wants {kind.signal} at {site}, where an engine has the features of an image and "
                    "their places only: use a method that asks for nothing there"
                )
    for part in method.resolve(host).parts():
        if part.scope == "sample" or part.pooled:
            raise ConfigError(
                f"{part.name()} has one ranking for all images of a prompt or all frames of a video, and a serving engine must "
                "know how many tokens of each stay: use a method that ranks each by itself"
            )
    places = ("pixels", "tower", "tower_output")
    tower = tuple(a for a in actions if a.site.at in places)
    entry = tuple(a for a in actions if a.site.at == "lm_entry" or (a.site.at == "decoder" and a.site.layer == 0))
    inner = sorted((a for a in actions if a not in tower and a not in entry), key=lambda a: a.site.layer)
    reducing = [a for a in tower if a.site.action == "reduce"]
    if family.tower.arrangements and reducing:
        names = ", ".join(sorted({a.method.name() for a in reducing}))
        raise UnsupportedSiteError(
            f"{names}: in this family images are cut into tiles that are put together after the vision tower, and how many of "
            "the tokens left in the tower that leaves depends on which they are: act after the tower, or restore them"
        )
    return Plan(method, tower, entry, tuple(inner))


def readable(kind: Kind) -> bool:
    """Whether a signal is read inside the language model: those of the tokens by themselves, and of the layers just before."""
    plain = replace(kind.signal, layer=None) == type(kind.signal)(kind.signal.kind)
    return bool(kind.paged) and plain and kind.layer == kind.last


class _NoState(dict[str, Any]):
    """What methods find as `Tokens.state`: an engine encodes an image once for several prompts, and runs these in pieces."""

    def __setitem__(self, name: str, value: Any) -> None:
        raise UnsupportedSiteError(
            f"this method remembers {name!r} from one of its sites to the next (`tokens.state`), and this engine cannot: it "
            "encodes an image before its prompts, and may run these in pieces; use a method that decides at each site alone"
        )

    def setdefault(self, name: str, default: Any = None) -> Any:
        self[name] = default

    def update(self, *values: Any, **named: Any) -> None:
        for name, value in dict(*values, **named).items():
            self[name] = value


@dataclass(frozen=True)
class _Counts:
    shortened: bool
    tower: Counts
    entry: Counts
    history: tuple[Counts, ...]
    inner: tuple[Counts, ...]


@lru_cache(maxsize=4096)
def _counts(plan: Plan, item: Item) -> _Counts:
    full, tokens = tokens_of(item.spans), _at_entry(plan, item)
    tower = tokens.counts
    for action in plan.entry:
        tokens = _after(action, tokens)
    shortened = len(tokens) > 0
    tokens = tokens if shortened else replace(full, history=(full.counts,) * len(plan.entry))
    entry, inner = tokens.counts, []
    history = tokens.history[len(tokens.history) - len(plan.entry) :]
    for layer in plan.layers:
        for action in plan.inner:
            if action.site.layer == layer:
                tokens = _after(action, tokens)
        inner.append(tokens.counts)
    return _Counts(shortened, tower, entry, history, tuple(inner))


def _at_entry(plan: Plan, item: Item) -> Tokens:
    """Made-up tokens as the tower leaves them."""
    full = tokens_of(item.spans)
    reducing = [a for a in plan.tower if a.site.action == "reduce"]
    if not reducing:
        return full
    now, place = tokens_of(frames(list(item.tower))), torch.arange(item.cells)
    for action in reducing:
        reduction = action.answer(made_up(now, action, _NoState()))
        place = place[reduction.keep]
        if action.site.at == "pixels" and reduction.shape is not None:
            now = tokens_of(replace(now.spans, shape=reduction.shape))
        else:
            now = reduction.survivors(now)
    return full.select(place.sort().values, now.counts)


def _after(action: Action, tokens: Tokens) -> Tokens:
    return action.answer(made_up(tokens, action, _NoState())).survivors(tokens)
