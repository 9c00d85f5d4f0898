"""A method: where it acts, what it asks for, what it decides. Methods add up with ``+``.

A method is a frozen dataclass in a file of its own. It says its `sites` and implements one of two levels:
`score` when it ranks tokens and keeps the best, `reduce` for anything else.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.answers import Answer
from foveate.errors import ConfigError
from foveate.escape import Changes
from foveate.schedule import Stage, check_ratio
from foveate.serialise import build, check, plain
from foveate.site import Host as Host
from foveate.site import Positions as Positions
from foveate.site import Site as Site
from foveate.tokens import Parked, Reduction, Tokens


@dataclass(frozen=True)
class Paper:
    """Where a method was published.

    Attributes:
        title: in full.
        venue: journal or conference; "arXiv" if there is no other yet.
        year: of the venue.
        arxiv: the identifier there, e.g. "2403.06764".
        code: the authors' repository on GitHub, as "owner/name"; empty: none is known.
    """

    title: str
    venue: str
    year: int
    arxiv: str
    code: str = ""

    @property
    def reference(self) -> str:
        """The venue and the identifier, without the title."""
        return f"{self.venue} {self.year}, {self.arxiv}"

    def __str__(self) -> str:
        return f"{self.title} ({self.reference})"


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base class. Subclasses are frozen dataclasses whose docstring cites the paper.

    Attributes:
        positions: what survivors do with position ids: ``keep`` the original ones (default); ``renumber``, as if the
            prompt had been shorter from that site on; ``native``, the same, for methods that act before the LLM only.
    """

    positions: Positions = "keep"

    #: where it was published, if it was
    paper: ClassVar[Paper | None] = None
    #: a baseline that every other method has to beat at the same cost
    control: ClassVar[bool] = False
    training_free: ClassVar[bool] = True
    #: the count of survivors follows from the grid alone, so serving engines can plan for it
    fixed_budget: ClassVar[bool] = True
    #: compares frames of one video, so that it can act only where these are known (`Host.frames`)
    temporal: ClassVar[bool] = False
    #: add log(size) of merged tokens to the tower's attention logits (ToMe's proportional attention)
    proportional_attention: ClassVar[bool] = False

    @property
    def across_images(self) -> bool:
        """Whether what is left of an image depends on the others of a call, which in an engine are other people's."""
        return False

    def __post_init__(self) -> None:
        check(self)
        for f in fields(self):
            if f.name == "keep" and f.type in ("float", float):
                check_ratio("keep", getattr(self, f.name))

    def sites(self, host: Host) -> Sequence[Site]:
        """Where this method acts in a model like ``host``."""
        raise NotImplementedError(f"{type(self).__name__} must say its sites")

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        """``(N,)`` scores; the best of every span survive, as many as `Tokens.budget` of ``site`` says."""
        raise NotImplementedError(f"{type(self).__name__} must implement score() or reduce()")

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        """Decide what survives at ``site``."""
        score = self.score(tokens, site)
        if not isinstance(score, Tensor) or score.shape != (len(tokens),):
            shape = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise ConfigError(f"{type(self).__name__}.score at {site} returned {shape}, expected ({len(tokens)},)")
        if tokens.strict and (unknown := int(score.isnan().sum())) and not bool(tokens.hidden.isnan().any()):
            raise ConfigError(
                f"{type(self).__name__}.score at {site} returned NaN for {unknown} of {len(tokens)} tokens, expected numbers"
            )
        return tokens.keep_best(score, site)

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        """What happens at ``site``: by default the reduction that `reduce` decides.

        A method that says something else than which tokens survive (`foveate.answers`) overrides this.
        """
        return self.reduce(tokens, site)

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        """Hidden states ``(N, C)`` of all tokens of ``parked``, now that the kept ones are what ``tokens`` says.

        Asked at ``restore`` and at every ``attend`` site. By default a parked token is what it was.
        """
        return parked.tokens.hidden.index_copy(0, parked.keep, tokens.hidden)

    def follow(self, state: MutableMapping[str, Any], rows: Tensor | None) -> None:
        """Make ``state`` (`Tokens.state`) fit a KV cache that has changed between two forwards. By default all is forgotten.

        Args:
            rows: ``(B',)`` of the rows before, those that there are now (beams, several sequences of one prompt); or None: the
                newest tokens of the text were cropped (guesses of assisted decoding that were wrong).
        """
        state.clear()

    def attach(self, model: nn.Module, host: Host, changes: Changes) -> None:
        """Change ``model`` by hand, where no site and no answer says what is to be done. Experimental: see `Changes`.

        A method that overrides this may have no sites. What it does is no part of `Report`, and serving engines refuse it.

        Args:
            model: the module whose forward joins vision and text, with the hooks of all sites on it.
            host: what is known of it.
            changes: makes changes that `Handle.remove` undoes; others stay.
        """

    def modules(self, host: Host) -> nn.ModuleDict | None:
        """Learned parts for a model like ``host``, as they are before training: a scorer, a resampler; None: there are none.

        They are made once for each handle, which keeps, saves and restores them (`foveate.Handle.modules`). Where the method
        decides they are `learned`.
        """
        return None

    @property
    def learned(self) -> nn.ModuleDict:
        """What `modules` has made for the model that this method acts in."""
        found: nn.ModuleDict | None = vars(self).get("_learned")
        if found is None:
            raise ConfigError(
                f"{self.name()} has no learned parts here: they are made by `foveate.compress`, if `modules` says which"
            )
        return found

    def flops(self, tokens: Tokens, site: Site) -> int:
        """Floating-point operations of the matrix products in `reduce` at ``site`` (2 per multiply-add)."""
        return 0

    def with_share(self, share: float, host: Host) -> Method:
        """The same method with its one dial at ``share``: 0 keeps as little as it can, 1 as much, more never less.

        That dial is the option `keep`; a method that is turned by something else overrides this. A share is not a
        promise: `foveate.dial` finds the one whose measured cost is the budget.
        """
        if all(f.name != "keep" for f in fields(self)):
            raise ConfigError(
                f"{self.name()} cannot be set to a budget: it has no option `keep`, and does not override `with_share`"
            )
        keep: dict[str, Any] = {"keep": share}
        return replace(self, **keep)

    def with_stages(self, stages: Sequence[Stage], host: Host) -> Method:
        """This method, its tokens leaving the decoder by a schedule: (layer, share of all tokens from there on).

        What `foveate tune` searches in methods that override this: those whose decision can be asked again, deeper.
        """
        raise ConfigError(f"{self.name()} follows no schedule: it does not override `with_stages`")

    @classmethod
    def name(cls) -> str:
        """The name in command lines and configs: the class name in lower case."""
        return cls.__name__.lower()

    def parts(self) -> tuple[Method, ...]:
        """The methods this one is composed of, in order; itself if it is not composed."""
        return (self,)

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        return Composed((*self.parts(), *other.parts()))

    def to_json(self) -> dict[str, Any]:
        """Plain data that `foveate.method_from_json` turns back into an equal method."""
        return {"method": self.name(), **{f.name: plain(getattr(self, f.name)) for f in fields(self)}}

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Method:
        """Build from plain data; unknown names and wrong types raise `ConfigError`."""
        return build(cls, options)


@dataclass(frozen=True)
class Composed(Method):
    """Several methods at once. At a shared site they act one after the other, in the order of the sum."""

    methods: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        if not self.methods:
            raise ConfigError("a sum of methods needs at least one")
        flat = tuple(part for method in self.methods for part in method.parts())
        object.__setattr__(self, "methods", flat)
        super().__post_init__()

    def parts(self) -> tuple[Method, ...]:
        return self.methods

    def sites(self, host: Host) -> Sequence[Site]:
        return [site for method in self.methods for site in method.sites(host)]

    def with_share(self, share: float, host: Host) -> Method:
        """Every part at the same share."""
        return replace(self, methods=tuple(method.with_share(share, host) for method in self.methods))

    @property
    def across_images(self) -> bool:
        return any(method.across_images for method in self.methods)

    def with_stages(self, stages: Sequence[Stage], host: Host) -> Method:
        """The part that follows a schedule at another one, the others as they are."""
        able = [number for number, part in enumerate(self.methods) if type(part).with_stages is not Method.with_stages]
        if len(able) != 1:
            names = ", ".join(self.methods[number].name() for number in able) or "none"
            raise ConfigError(f"a schedule is for exactly one part of a sum, and here {names} would follow it")
        paced = self.methods[able[0]].with_stages(stages, host)
        return replace(self, methods=(*self.methods[: able[0]], paced, *self.methods[able[0] + 1 :]))

    def to_json(self) -> dict[str, Any]:
        return {"method": "composed", "methods": [method.to_json() for method in self.methods]}

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.methods))
