"""What a method will do to an image, known before anything runs.

An engine gives every prompt its slots before the vision tower has seen the image. A method with a fixed budget decides how
many tokens stay by the grid alone; so it is asked, at its sites one after another, about made-up tokens on that grid, and the
counts of its answers are those of every image of that shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from foveate.errors import UnsupportedSiteError
from foveate.method import Host, Method
from foveate.models.family import Family
from foveate.runtime.engines import Action, actions_of, frames, made_up, tokens_of
from foveate.serving.budgets import SERVERS, Budgets, Choice
from foveate.serving.refusals import check, in_tower, inside
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
        choice: what its prompt asks for.
    """

    grid: Grids
    tower: Grids
    gaps: tuple[tuple[int, int], ...] = ()
    choice: Choice = SERVERS

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
        keep: how much the method keeps in this model, in its own unit (`foveate.units`).
        budgets: plans of the same method for prompts that ask for a budget of their own; None: they may not.
        profiles: plans that prompts may ask for by name, in the order of names.
        shared: decoder layers before which tokens leave in any of these plans, where there are several.
    """

    method: Method
    tower: tuple[Action, ...]
    entry: tuple[Action, ...]
    inner: tuple[Action, ...]
    keep: float
    budgets: Budgets | None = field(default=None, compare=False)
    profiles: Mapping[str, Plan] = field(default_factory=dict, compare=False)
    shared: tuple[int, ...] = ()

    def of(self, choice: Choice) -> Plan:
        """Return the plan of a prompt that asks for that."""
        if choice.profile:
            return self.profiles.get(choice.profile, self)  # which may be this one
        return self if choice.keep is None or self.budgets is None else self.budgets.at(choice.keep)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """This plan and those of the profiles; a budget acts where the server's does."""
        return (self, *self.profiles.values())

    @property
    def name(self) -> str:
        """The method's, as ``luvc`` or ``ipcv+adsc``."""
        return "+".join(term.name() for term in self.method.terms())

    def __str__(self) -> str:
        """Say it in a line, for a log."""
        layers = f" (before layer {', '.join(map(str, self.own_layers))})" if self.own_layers else ""
        most = f", up to {self.budgets.limit:.3g} where a prompt asks for it" if self.budgets else ""
        if self.budgets and self.budgets.adaptive:
            most = (
                f", or {self.budgets.adaptive.least:.3g} to {self.budgets.limit:.3g} by the detail of each image{most}"
            )
        named = "".join(f"; profile {name}: {plan}" for name, plan in self.profiles.items())
        if not self.places:
            return f"no method{named}"
        acts = f"{self.method!r}, which acts {', '.join(self.places)}{layers}"
        return f"{acts} and keeps {self.keep:.3g} ({self.unit}){most}{named}"

    @property
    def unit(self) -> str:
        """What the method keeps a share of."""
        return "+".join(dict.fromkeys(term.unit for term in self.method.terms()))

    @property
    def places(self) -> tuple[str, ...]:
        """Where the method acts."""
        tower, inner = ["in the vision tower"] * bool(self.tower), ["inside the language model"] * bool(self.inner)
        return (*tower, *["before the language model"] * bool(self.entry), *inner)

    @property
    def whole(self) -> tuple[str, ...]:
        """Signals of which a prompt must come in one piece."""
        actions = [action for plan in self.plans for action in plan.inner]
        return tuple(sorted({str(kind.signal) for action in actions for kind in action.asks if kind.paged == "whole"}))

    @property
    def own_layers(self) -> tuple[int, ...]:
        """Decoder layers before which tokens leave in this plan, ascending."""
        return tuple(sorted({action.site.layer for action in self.inner}))

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which tokens leave, ascending: those of this plan and of all that share its engine."""
        return self.shared or self.own_layers

    @property
    def in_tower(self) -> bool:
        """Whether any plan of the engine acts in the vision tower."""
        return any(plan.tower for plan in self.plans)

    @property
    def leaves_holes(self) -> bool:
        """Whether tokens leave in the vision tower for good."""
        return any(action.site.action == "reduce" for action in self.tower)

    def shortens(self, item: Item) -> bool:
        """Tell whether actions before the language model act on this image.

        One of which nothing would be left (a share of exactly 0) keeps all of its tokens: a prompt must have a place for it.
        """
        return _counts(self.of(item.choice), item).shortened

    def tower_counts(self, item: Item) -> Counts:
        """Tokens of each span that the vision tower leaves, where it is shortened."""
        return _counts(self.of(item.choice), item).tower

    def entry_counts(self, item: Item) -> Counts:
        """Tokens of each span that reach the language model."""
        return _counts(self.of(item.choice), item).entry

    def entry_history(self, item: Item) -> tuple[Counts, ...]:
        """Tokens of each span before each of the actions on the features: what later cuts of a schedule are a share of."""
        return _counts(self.of(item.choice), item).history

    def inner_counts(self, item: Item) -> tuple[Counts, ...]:
        """Tokens of each span that are left from each of `layers` on."""
        return _counts(self.of(item.choice), item).inner


def make_plan(method: Method, host: Host, family: Family, config: Any) -> Plan:
    """Return the plan of a method with a fixed budget.

    Raises:
        ConfigError: its budget depends on the content, or its options do not fit an engine.
        UnsupportedSiteError: it acts where an engine cannot let it, or asks for what an engine cannot give.
    """
    parts, actions = method.resolve(host).parts(), actions_of(method, host, family, config)
    check(parts, actions, family)
    tower = tuple(a for a in actions if in_tower(a.site))
    inner = sorted((a for a in actions if inside(a.site)), key=lambda a: a.site.layer)
    entry = tuple(a for a in actions if a not in tower and a not in inner)
    made = Plan(method, tower, entry, tuple(inner), method.mean(host))
    made.entry_counts(TRIAL)
    return made


#: an image of which a method is asked at the start, so that what it does wrong there is said then
TRIAL = Item(grid=((1, 6, 6),), tower=((1, 6, 6),))


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
