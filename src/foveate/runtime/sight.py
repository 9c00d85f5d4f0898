"""A `foveate.answers.Sight` is added to the model's own mask, in layers that have attention.

The sight in force is part of the layout, so it follows the tokens as others leave. Cache entries remember the group and the
span of each token, and whether later text may see it: that is all that later forwards need to know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from foveate.answers import Sight
from foveate.runtime.checks import check_sight
from foveate.runtime.layout import Rows
from foveate.runtime.masks import Limit
from foveate.runtime.protocol import Layout
from foveate.tokens import Tokens

if TYPE_CHECKING:
    from foveate.runtime.context import Action, DecoderPass, TowerPass

L = TypeVar("L", bound=Layout)
TEXT = -1  # the group of whatever is no visual token


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of the first entries of a cache entry; whatever comes after them is text.

    Attributes:
        number: ``(B, P)`` int64, the group of each, or `TEXT`.
        hidden: ``(B, P)`` bool, what text does not see.
        span: ``(B, P)`` int64, `Spans.number` of each, or `TEXT`.
    """

    number: Tensor
    hidden: Tensor
    span: Tensor

    def up_to(self, length: int) -> Groups:
        """Return the first ``length`` entries, as many of which are text as it takes."""
        missing = length - self.number.shape[1]
        if missing <= 0:
            return self._each(lambda x: x[:, :length])
        return self._each(
            lambda x: torch.nn.functional.pad(x, (0, missing), value=0 if x.dtype == torch.bool else TEXT)
        )

    def after(self, cut: int) -> Groups | None:
        """The groups of what is left without the first ``cut`` entries."""
        return self._each(lambda x: x[:, cut:]) if cut < self.number.shape[1] else None

    def then(self, other: Groups) -> Groups:
        """These groups, and ``other`` right after them."""
        return Groups(*(torch.cat([mine, theirs], 1) for mine, theirs in zip(self._all, other._all)))

    def taken(self, take: Tensor) -> Groups:
        """Return the groups of the entries ``take (B, P')`` of each row."""
        take = take.to(self.number.device)
        return self._each(lambda x: x.gather(1, take))

    def of_rows(self, rows: Tensor) -> Groups:
        """Return the groups of other rows of the batch."""
        rows = rows.to(self.number.device)
        return self._each(lambda x: x.index_select(0, rows))

    @property
    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.number, self.hidden, self.span

    def _each(self, do: Callable[[Tensor], Tensor]) -> Groups:
        return Groups(*map(do, self._all))


def groups_of(layout: Rows) -> Groups | None:
    """The groups of what is present, or None: no sight is in force."""
    sight = layout.sight
    if sight is None:
        return None
    text = torch.full((len(layout.lengths), layout.width), TEXT, device=layout.row.device)
    of_span = torch.tensor(layout.tokens.spans.number, dtype=torch.long).to(text.device, non_blocking=True)
    number, span = (
        text.index_put((layout.row, layout.slot), each) for each in (sight.group, of_span[layout.tokens.segment])
    )
    text_sees = _on(sight.sees, number.device)[-1]
    return Groups(number, (number >= 0) & ~text_sees[number], span)


def joined(old: Groups | None, new: Groups | None, at: int) -> Groups | None:
    """Return what a cache entry holds once ``new`` has come after the ``at`` entries that it has."""
    if new is None:
        return old
    if old is None:
        text = torch.full((len(new.number), at), TEXT, device=new.number.device)
        old = Groups(text, torch.zeros_like(text, dtype=torch.bool), text)
    return old.up_to(at).then(new)


def limit_of(layout: Rows, keys: Groups, query_places: Tensor, key_places: Tensor) -> Limit:
    """Return what the sight in force lets the tokens of ``layout`` see.

    Args:
        layout: the queries, with a sight.
        keys: all keys, those of the queries last.
        query_places, key_places: ``(B, Q)`` and ``(B, K)`` places in the full sequence; a layer may run on the last ``Q``
            queries alone.
    """
    sight, queries = layout.sight, groups_of(layout)
    assert sight is not None
    assert queries is not None
    table, window = _on(sight.sees, key_places.device), sight.window
    text, cut = len(table) - 1, layout.width - query_places.shape[1]
    past = key_places.shape[1] - layout.width
    of_query = queries.number[:, cut:].to(key_places.device)
    of_key, hidden = keys.number.to(key_places.device), keys.hidden.to(key_places.device)
    query_span, key_span = queries.span[:, cut:].to(key_places.device), keys.span.to(key_places.device)

    def limit(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        q, k = of_query[b, i], of_key[b, j]
        away = (query_places[b, i] - key_places[b, j]).abs()
        # A group of an earlier forward that this one does not know is seen as text sees it.
        by_text = (q < 0) | (k >= text)
        seen = torch.where(by_text, ~hidden[b, j], table[q, k.clamp(max=text - 1)])
        if window is not None:
            seen = seen & ((away <= window) | (q < 0) | (k < 0))
        if sight.apart:
            seen = seen & ((q < 0) | (query_span[b, i] == key_span[b, j]))
        # An appended token shares its place with another one; without such, layers may see more than they hold.
        return seen | (away == 0 if layout.tokens.marks is None else i + cut == j - past)

    return limit


def look(action: Action, call: DecoderPass, tokens: Tokens, hidden: Tensor, blind: int) -> Tensor:
    """Ask for a method's sight at its site, and put it into the layout of the call; one that hides nothing lifts the old one.

    ``blind``: layers from here on that have no attention, so that it hides nothing from them.
    """
    assert call.layout is not None
    answer, values = action.ask(tokens)
    sight = check_sight(action.method, action.site, tokens, answer, values)
    says = says_of(sight)
    if blind and not sight.hides_nothing:
        says += f"; not in the {blind} layers that carry a state"
    action.note(call.trace, tokens, says=says)
    seen = None if sight.hides_nothing else replace(sight, sees=sight.sees.cpu())
    call.layout = replace(call.layout, sight=seen)
    call.members = None if call.members is None else call.members.seeing(seen)
    return hidden


def look_in_tower(action: Action, call: TowerPass, layout: L, tokens: Tokens) -> L:
    """The same at a site of the vision tower: the layout with what the method says."""
    sight = check_sight(action.method, action.site, tokens, *action.ask(tokens))
    action.note(call.trace, tokens, says=says_of(sight))
    return layout.of_sight(None if sight.hides_nothing else replace(sight, sees=sight.sees.cpu()))


def says_of(sight: Sight) -> str:
    """Return what a sight hides, in a few words for the report."""
    if sight.hides_nothing:
        return "everything is seen"
    groups = len(sight.sees) - 1
    names = [*(f"group {g}" for g in range(groups)), "text"]
    parts = []
    for name, row in zip(names, sight.sees.tolist()):
        if not all(row):
            parts.append(f"{name} sees {', '.join(n for n, seen in zip(names, row) if seen) or 'itself alone'}")
    if sight.window is not None:
        parts.append(f"visual tokens see each other up to {sight.window} away")
    if sight.apart:
        parts.append("visual tokens see their own image alone")
    return "; ".join(parts)


def _on(sees: Tensor, device: torch.device) -> Tensor:
    return sees.to(device, non_blocking=True)
