"""A kind of signal: where it exists, how it is read, and what it is in an engine that has no tensors to read it from.

A new kind is one file of `kinds` with one class. Most read the attention of a layer: `Kind.ask` says what of it is wanted
before it runs, `Kind.read` makes the signal of the tokens that are present at the site, whatever has left since then.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from foveate.errors import UnsupportedSiteError
from foveate.models.family import Family
from foveate.signal import Signal, register_kind
from foveate.site import Host, Site

if TYPE_CHECKING:
    from foveate.runtime.presence import Presence
    from foveate.runtime.signals.reading import Reading

#: ``(B, R)`` slots of the queries with a name (``last``, ``question``, ``text``, ``cls``) in the attention that is about to run
Slots = Callable[[str], Tensor]
#: ``draw(*shape)`` gives random numbers ``(N, *shape)``
Draw = Callable[..., Tensor]
#: How many channels made-up hidden states have.
CHANNELS = 8
Paged = Literal["", "pieces", "whole"]
#: What must be there when a signal is read: an ``attention`` read before; hidden states that have ``entered`` a layer, or
#: ``left`` it; the CLS tokens (``leading``) that have entered a block; the attention of the layer ``ahead``; states of blocks
#: of the ``tower``; ``pixels`` of the images; a ``text_pass`` of the language model. What is ahead may be wanted ``unrotated``,
#: as if nothing had a position.
Need = Literal["attention", "entered", "left", "leading", "ahead", "unrotated", "tower", "pixels", "text_pass"]


@dataclass(frozen=True)
class Asker:
    """A site that asks for a signal.

    Attributes:
        name: of the method.
        site: with its layer counted from the beginning.
        host, family, config: the model.
        attends: which decoder layers have attention, rather than a state that they carry on; None: it is not known yet.
        positions: what the method does with position ids.
    """

    name: str
    site: Site
    host: Host
    family: Family
    config: Any
    attends: Sequence[bool] | None = None
    positions: str = "keep"

    @property
    def last(self) -> int:
        """The last layer (on its side) that has run its attention when the site is reached; -1: none has."""
        site = self.site
        if site.at in ("pixels", "lm_entry"):
            return -1
        if site.at == "cache":
            return site.layer
        if site.at == "tower_output":
            return self.host.blocks - 1
        return site.layer if site.where == "mid" or site.part == "ffn" else site.layer - 1

    def refuse(self, signal: Signal, why: str) -> UnsupportedSiteError:
        """Return the error of a signal that cannot be had."""
        return UnsupportedSiteError(f"{self.name} wants {signal} at {self.site}, but {why}")


@dataclass(frozen=True)
class Kind:
    """A signal as a site asks for it. Each kind is a subclass with a docstring that says its shape and its cost.

    Attributes:
        signal: its address, as the method gave it.
        layer: of which it is read, counted from the beginning; of those that are of none, the site's last one.
        last: the last layer that has run its attention when the site is reached.
        inside: the site is between attention and FFN of that layer.
    """

    signal: Signal
    layer: int = -1
    last: int = -1
    inside: bool = False

    #: the name: that of the file
    name: ClassVar[str] = ""
    #: places (`Site.at`) where it exists
    places: ClassVar[frozenset[str]] = frozenset()
    #: whose it can be
    of: ClassVar[tuple[str, ...]] = ("visual",)
    #: it is of a layer, and may be of an earlier one
    layered: ClassVar[bool] = True
    #: queries that it can be asked of; the first ones by default
    rows: ClassVar[tuple[str, ...]] = ()
    #: of a vision block it can be kept for sites of the language model (``at="tower"``)
    outlives: ClassVar[bool] = False
    #: heads can be kept apart
    heads: ClassVar[bool] = False
    #: whether an engine with a paged cache can give it: of a prompt that comes in ``pieces``, of a ``whole`` one, or not ("")
    paged: ClassVar[Paged] = ""
    #: where each process of an engine has some of the heads: it is the ``same`` in all, has an axis of ``heads``, or is a
    #: ``mean`` over them
    in_parts: ClassVar[Literal["same", "heads", "mean"]] = "same"

    def __init_subclass__(cls) -> None:
        if cls.name:
            KINDS[cls.name] = cls
            register_kind(cls.name, cls.known_before)

    @classmethod
    def known_before(cls, signal: Signal) -> bool:
        """Tell whether it is known before any layer has run."""
        return not cls(signal).needs & {"attention", "entered", "left", "leading"}

    @property
    def needs(self) -> frozenset[Need]:
        """What must be there when it is read."""
        return frozenset({"attention"})

    @property
    def kept_as(self) -> Hashable:
        """The name by which it is kept for the language model."""
        return self.name, self.layer

    @property
    def queries(self) -> str:
        """The name of the queries whose attention it is."""
        return self.signal.rows or (self.rows[0] if self.rows else "")

    def ask(self, reading: Reading, slots: Slots) -> None:
        """Say what of the attention of its layer is wanted."""

    def read(self, here: Presence) -> Tensor:
        """The signal of the tokens that are present."""
        raise NotImplementedError

    def read_in_tower(self, here: Presence) -> Tensor:
        """What is kept of the tower, of the tokens that are present at its end, where the signal is ``at="tower"``."""
        raise NotImplementedError

    def made_up(self, draw: Draw) -> Tensor:
        """Made-up numbers in its shape, for a planner that asks for counts alone."""
        raise NotImplementedError

    # -- refusals ---------------------------------------------------------------------------------------------------

    @classmethod
    def asked_by(cls, signal: Signal, by: Asker) -> Kind:
        """Return the signal of a site, its layer counted from the beginning.

        Raises:
            UnsupportedSiteError: the model, or the place, cannot give it.
        """
        cls.check(signal, by)
        layer = cls.usual_layer(signal, by) if signal.layer is None else cls._layer(signal, by)
        kind = cls(signal, layer, by.last, by.site.where == "mid")
        kind.check_layer(by)
        return kind

    @classmethod
    def usual_layer(cls, signal: Signal, by: Asker) -> int:
        """The layer of a signal whose address says none."""
        return by.last

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        """Raise `UnsupportedSiteError` if no layer of this model gives the signal at this place."""
        site = by.site
        places = cls.places | {"lm_entry", "decoder"} if signal.at and cls.outlives else cls.places
        if site.at not in places or (signal.of == "text" and site.at.startswith("tower")):
            can = ", ".join(sorted(kinds_at(site.at))) or "no signal"
            note = "; no text reaches the vision tower" if site.at.startswith("tower") else ""
            what = signal if site.at in places else signal.kind
            raise UnsupportedSiteError(f"{by.name}: {site} cannot give {what}, only {can}{note}")
        if site.part and "ahead" in cls(signal).needs:
            raise by.refuse(signal, "that layer has begun: ask before a layer")
        if signal.of not in cls.of:
            raise by.refuse(signal, f"{cls.name} is of the {' or the '.join(cls.of)} tokens")
        if site.at == "cache" and signal.of != "visual":
            raise by.refuse(signal, "sites of the cache know visual tokens only")
        if signal.of == "cls":
            if not by.host.has_cls:
                raise by.refuse(signal, f"the tower of {by.host.family!r} has no CLS token")
            if not site.at.startswith("tower"):
                raise by.refuse(signal, "the CLS token stays in the vision tower: ask at a site there")
        if signal.rows and signal.rows not in cls.rows:
            can = f"has rows of {' or '.join(cls.rows)}" if cls.rows else "has no choice of rows"
            raise by.refuse(signal, f"{cls.name} {can}")
        if signal.heads and not cls.heads:
            raise by.refuse(signal, f"the heads of {cls.name} are not for choice: leave heads=True out")
        if signal.layer is not None and not cls.layered:
            raise by.refuse(signal, f"{cls.name} is of no layer: leave layer={signal.layer} out")
        if signal.at:
            cls._check_kept(signal, by)

    @classmethod
    def _check_kept(cls, signal: Signal, by: Asker) -> None:
        """Raise `UnsupportedSiteError` if a site cannot have what a vision block has left."""
        if not cls.outlives:
            can = " and ".join(sorted(name for name, kind in KINDS.items() if kind.outlives))
            raise by.refuse(signal, f"only {can} of vision blocks are kept for the language model, not {cls.name}")
        if by.site.at.startswith("tower"):
            raise by.refuse(signal, 'the site is in the tower itself: leave at="tower" out')
        if signal.of != "visual":
            raise by.refuse(signal, f"only {cls.name} of visual tokens is kept for the language model")
        if by.family.tower.arrangements:
            raise by.refuse(
                signal,
                f"in {by.host.family!r} images are cut into tiles, which are put together after the tower: its rows are no "
                "tokens of the language model",
            )

    @staticmethod
    def _layer(signal: Signal, by: Asker) -> int:
        """Return the layer that an address says, one that has run before the site."""
        tower = by.site.at.startswith("tower") or signal.at == "tower"
        n, what = (by.host.blocks, "vision block") if tower else (by.host.layers, "decoder layer")
        assert signal.layer is not None
        layer = signal.layer + n if signal.layer < 0 else signal.layer
        if not 0 <= layer < n:
            raise by.refuse(signal, f"there is no {what} {signal.layer}: the model has {n}, 0 to {n - 1}")
        if by.site.at == "decode" and layer != by.last:
            raise by.refuse(signal, "a decode site reads the layer before it only: leave layer out")
        if by.site.at == "cache" and layer != by.last:
            raise by.refuse(signal, "a cache site reads the attention of its own layer only: leave layer out")
        if not signal.at and layer > by.last:
            have = f"ask for 0 to {by.last}, or act at a later site" if by.last >= 0 else "act at a later site"
            raise by.refuse(signal, f"{what} {layer} has not run there yet: {have}")
        return layer

    def check_layer(self, by: Asker) -> None:
        """Raise `UnsupportedSiteError` if its layer does not give it."""
        needs, site = self.needs, by.site
        if needs & {"attention", "entered", "left"} and self.layer < 0:
            raise UnsupportedSiteError(
                f"{by.name}: {site} has no layer before it to give {self.signal}: use layer 1 or later"
            )
        merger = by.family.tower.merger
        if merger is not None and (site.at.startswith("tower") or "tower" in needs):
            block = merger.block(by.config)
            beyond = site.at != "tower" or (site.layer, site.where == "mid") > (block, False)
            if needs & {"attention", "entered", "left", "tower"} and self.layer < block and beyond:
                raise by.refuse(
                    self.signal, f"rows before block {block}, where this tower merges them, are no more there"
                )
        in_decoder = needs & {"attention", "ahead"} and not site.at.startswith("tower")
        if in_decoder and by.attends is not None and not by.attends[self.layer]:
            self._refuse_recurrent(by)

    def _refuse_recurrent(self, by: Asker) -> None:
        """Say which layers have attention, and so where a site may be that reads it."""
        assert by.attends is not None
        after = 0 if "ahead" in self.needs else 1
        can = ", ".join(str(i + after) for i, one in enumerate(by.attends[: len(by.attends) - after]) if one)
        if self.signal.layer is not None:
            raise by.refuse(self.signal, "that layer carries a state and has no attention: name another one")
        which = "the layer before it" if after else "the layer after it"
        raise by.refuse(self.signal, f"{which} carries a state and has no attention: in this model use layer {can}")


#: every kind that there is, by its name
KINDS: dict[str, type[Kind]] = {}


def kinds_at(place: str) -> list[str]:
    """Names of the kinds of signals that a place can give."""
    return [name for name, kind in KINDS.items() if place in kind.places]


def of_units(rows: Tensor, unit: int, side_by_side: bool) -> Tensor:
    """Return a signal of tokens of ``unit`` rows each, from that of their rows ``(N * unit, ...)``.

    Heads ``(N * unit, H, d)`` of a token's rows are put ``side_by_side``, ``(N, H, unit * d)``; else it is their mean.
    """
    if unit == 1:
        return rows
    parts = rows.view(-1, unit, *rows.shape[1:])
    return parts.transpose(1, 2).flatten(2) if side_by_side else parts.mean(1)
