"""A method says where it acts, what it asks for and what it decides. Methods add up with ``+``.

A method is a frozen dataclass in a file of its own. It says its `sites` and implements one of two levels:
`score` when it ranks tokens and keeps the best, `reduce` for anything else. What ``keep`` means is the same in all of them;
`foveate.pruners` has bases that do the arithmetic.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import reduce
from operator import mul
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn

from foveate.answers import Answer, Remember
from foveate.errors import ConfigError, shown
from foveate.escape import Changes
from foveate.learning import Relaxation, Stage
from foveate.schedule import Schedule, check_ratio
from foveate.serialise import build, check, plain
from foveate.site import Host as Host
from foveate.site import Positions as Positions
from foveate.site import Site as Site
from foveate.tokens import Parked, Reduction, Scope, Tokens
from foveate.units import Unit as Unit
from foveate.units import left

M = TypeVar("M", bound="Method")


@dataclass(frozen=True)
class Paper:
    """A paper is where a method was published.

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
        """Say the venue and the identifier, without the title."""
        return f"{self.venue} {self.year}, {self.arxiv}"

    def __str__(self) -> str:
        return f"{self.title} ({self.reference})"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method says where tokens are reduced, and which of them stay. Subclasses are frozen dataclasses that cite their paper.

    Attributes:
        positions: what survivors do with position ids: ``keep`` the original ones (default); ``renumber``, as if the
            prompt had been shorter from that site on; ``native``, the same, for methods that act before the LLM only;
            ``virtual``: a merged token stands for all of its members (`Reduction.groups`) in the attention of the language
            model, each at its own position, as if the sequence were full, and the rest of a layer works on one row for them
            (DyMU's virtual token unmerging: it saves projections and FFN, not KV or attention).
        keep: the share of the visual tokens that a decoder layer holds, on average over all layers (see `unit` for methods
            that save something else); None: the method's own setting, in its own options.
    """

    positions: Positions = "keep"
    keep: float | None = None

    #: where it was published, if it was
    paper: ClassVar[Paper | None] = None
    #: a baseline that every other method has to beat at the same cost
    control: ClassVar[bool] = False
    training_free: ClassVar[bool] = True
    #: what `keep` is a share of (`foveate.units.Unit` says what each one counts), or ``none``: this method removes nothing
    unit: ClassVar[Unit] = "tokens"
    #: options that say where tokens leave, which go together with `keep`
    where: ClassVar[tuple[str, ...]] = ("layer", "layers", "every", "schedule")
    #: options that say how many, which do not; None by default, so that what a user has given is known
    how_much: ClassVar[tuple[str, ...]] = ("ratio", "ratios", "merge", "threshold")
    #: options, None by default, in which ``()`` says something; in all others it names nothing, and is refused
    may_be_empty: ClassVar[tuple[str, ...]] = ()
    #: what shares one budget: each ``frame``; each ``clip``, an image or a whole video; or all images of a ``sample``, a prompt
    scope: ClassVar[Scope] = "clip"
    #: the tokens of a scope compete in one ranking, so that one frame may keep more of them than another
    pooled: ClassVar[bool] = False
    #: the count of survivors follows from the grid alone, so serving engines can plan for it (see `has_fixed_budget`, too)
    fixed_budget: ClassVar[bool] = True
    #: the paper says which scores survive, and not how many: what an unset ``threshold`` is where nothing else says how much
    usual_threshold: ClassVar[float | None] = None
    #: where no serving engine can have the defaults: the option, as it is written, with which one can; ``""``: none helps
    served_with: ClassVar[str] = ""
    #: add log(size) of merged tokens to the tower's attention logits (ToMe's proportional attention)
    proportional_attention: ClassVar[bool] = False
    #: what `foveate.Handle.encode` keeps of an image: its ``features``; or ``appended``, what the language model makes of the
    #: tokens that the method appends at the entry, which text must see in place of the image (`foveate.answers.Sight.apart`)
    stores: ClassVar[Literal["features", "appended"]] = "features"
    #: how it is trained, stage by stage (`foveate.learning` says what that means); (): there is nothing to train
    stages: ClassVar[tuple[Stage, ...]] = ()
    #: how its choice by `score` is made soft in training; None: it trains as it is
    relaxation: ClassVar[Relaxation | None] = None
    #: which shares are kept in the course of training (`foveate.training.curriculum`), where a user says nothing
    curriculum: ClassVar[str] = "constant"

    @property
    def across_images(self) -> bool:
        """Whether what is left of an image depends on the others of a call, which in an engine are other people's."""
        return False

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do with these options: then, and only then, `sites` may be empty."""
        return self.keep == 1

    @property
    def temporal(self) -> bool:
        """Whether it compares frames of one video, so that it acts only where these are known (`Host.frames`), in one piece."""
        return False

    def __post_init__(self) -> None:
        check(self)
        for f in fields(self):
            if getattr(self, f.name) == () and f.default is None and f.name not in self.may_be_empty:
                raise ConfigError(
                    f"{self.name()}: {f.name}=() names nothing: leave it out for the method's own setting, or give keep=1 to "
                    "keep all"
                )
        given = [name for name in self.how_much if getattr(self, name, None) is not None]
        for name in ("keep", *(name for name in given if name not in (*self.where, "threshold"))):
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else [value]:
                if isinstance(each, (int, float)):
                    check_ratio(name, each)
        if "threshold" in given and len(given) > 1:
            both = " and ".join(f"{name}={shown(getattr(self, name))}" for name in given)
            raise ConfigError(f"{self.name()}: {both} both say how much stays: give one of them")
        if self.keep is None:
            return
        if self.unit == "none":
            raise ConfigError(
                f"{self.name()} removes nothing that a share could be of, so leave out keep={self.keep:.4g}"
            )
        if given:
            says = ", ".join(f"{name}={shown(getattr(self, name))}" for name in given)
            raise ConfigError(
                f"{self.name()}: keep={self.keep:.4g} and {says} both say how much stays: give keep, or {' and '.join(given)}"
            )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # or `dataclass` would write one that shows every option
            inherited: Any = cls.__repr__
            cls.__repr__ = inherited  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Write the call that makes this method, without the options that are as they are by default."""
        given = [f for f in fields(self) if f.init and (f.default is MISSING or getattr(self, f.name) != f.default)]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"

    @property
    def cut(self) -> float | tuple[float, ...] | None:
        """The score from which on tokens survive, however many: the option ``threshold``, one for all sites or one for each
        block or layer; None where a count decides."""
        if "threshold" not in self.how_much or not hasattr(self, "threshold"):
            return None
        given: float | tuple[float, ...] | None = getattr(self, "threshold")  # noqa: B009 (an option of some methods)
        counts = any(getattr(self, name, None) is not None for name in ("keep", *self.how_much))
        counts |= isinstance(getattr(self, "schedule", None), tuple)
        return given if counts else self.usual_threshold

    def cut_at(self, site: Site) -> float | None:
        """Tell what `cut` is at ``site``."""
        return self.cut[site.layer] if isinstance(self.cut, tuple) else self.cut

    @property
    def has_fixed_budget(self) -> bool:
        """Whether the count of survivors follows from the grid alone, with these options."""
        return self.fixed_budget and self.cut is None

    def sites(self, host: Host) -> Sequence[Site]:
        """Say where this method acts in a model like ``host``."""
        raise NotImplementedError(f"{type(self).__name__} must say its sites: define sites(self, host)")

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        """Rank the tokens by scores ``(N,)``: the best survive, as many as `Tokens.budget` says, or all from `cut` on."""
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
        cut = self.cut_at(site)
        return tokens.keep_best(score, site) if cut is None else tokens.keep_above(score, cut)

    def margins(self, tokens: Tokens, site: Site) -> Tensor:
        """Return what `cut_at` is compared with at ``site``, for each token that may leave there ``(M,)``: those below it do.

        A method whose sites have thresholds of their own implements this, so that `foveate.dial.with_threshold` finds them.
        """
        raise NotImplementedError(f"{type(self).__name__} has no margins: one threshold is for all of its sites")

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        """Decide what happens at ``site``: by default what `reduce` says, which is not called where nothing is left.

        A method that says something else than which tokens survive (`foveate.answers`) overrides this.
        """
        if site.action == "remember":
            return self.remember(tokens, site)
        return tokens.keep_none() if site.keep == 0 and site.action == "reduce" else self.reduce(tokens, site)

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        """Return hidden states ``(N, C)`` of all tokens of ``parked``, now that the kept ones are what ``tokens`` says.

        Asked at ``restore`` and at every ``attend`` site, in the tower and in the decoder. By default a parked token is what it
        was.
        """
        return parked.tokens.hidden.index_copy(0, parked.keep, tokens.hidden)

    def remember(self, tokens: Tokens, site: Site) -> Remember:
        """Return what is kept of each image at a ``remember`` site, for `inject`.

        It is asked once of every image or video, when all of it is there: ``tokens`` are those images that are complete now.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement remember()")

    def inject(self, x: Tensor, memory: Tensor, site: Site) -> Tensor:
        """``(M, C)``: what is added to the FFN's output for tokens of text, at an ``inject`` site.

        What a token gets depends on its own row of ``x`` and on ``memory``, not on the other rows: how many tokens are asked
        about at once is up to the call (a prompt, a chunk of it, a generated token, all beams).

        Args:
            x: ``(M, C)`` what the FFN sees of them, after the norm.
            memory: ``(R, D)`` what `remember` has said of the images before these tokens, image after image; those of their
                own sample, R is 1 or more. Of several ``remember`` sites it is that of the last one up to this layer.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement inject()")

    def inject_flops(self, x: Tensor, memory: Tensor, site: Site) -> int:
        """Floating-point operations of the matrix products in `inject` at ``site`` (2 per multiply-add)."""
        return 0

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
        """Make the learned parts for a model like ``host``, as they are before training: a scorer, a resampler; None: none.

        They are made once for each handle, which keeps, saves and restores them (`foveate.Handle.modules`). Where the method
        decides they are `learned`.
        """
        return None

    def lessons(self, host: Host) -> Sequence[Site]:
        """Say the sites that only training has, in stages whose targets are from the ``method``: there `target` is asked."""
        return ()

    def target(self, tokens: Tokens, site: Site) -> Tensor:
        """Return ``(N,)`` what scores are to follow, 0 or more, at one of the `lessons`, which all tokens have reached."""
        raise NotImplementedError(f"{type(self).__name__} must implement target()")

    @property
    def learned(self) -> nn.ModuleDict:
        """The learned parts that `modules` has made for the model that this method acts in."""
        found: nn.ModuleDict | None = vars(self).get("_learned")
        if found is None:
            raise ConfigError(
                f"{self.name()} has no learned parts here: they are made by `foveate.compress`, if `modules` says which"
            )
        return found

    def flops(self, tokens: Tokens, site: Site) -> int:
        """Count floating-point operations of matrix products in `reduce` or `answer` at ``site`` (2 per multiply-add)."""
        return 0

    # -- how much it keeps: read, and set

    def shares(self, host: Host) -> Schedule:
        """Tell which share of the tokens given to the method each decoder layer of ``host`` holds, as its sites say."""
        share = 1.0
        at: dict[int, list[float]] = {}
        for site in self.sites(host):
            if site.action == "reduce" and site.at not in ("decode", "cache") and not site.step:
                layer = site.layer if site.at == "decoder" else 0
                at.setdefault(layer + host.layers if layer < 0 else layer, []).append(site.keep)
        stages = []
        for layer, keeps in sorted(at.items()):
            share = reduce(mul, keeps, share)
            stages.append((layer, share))
        return Schedule(tuple(stages))

    def mean(self, host: Host) -> float:
        """Tell what `keep` is in a model like ``host``, in the method's `unit`, whether it was given or not.

        Raises:
            ConfigError: a threshold decides, so this depends on the image (`foveate.dial.with_threshold` finds one for a mean).
        """
        free = [part.name() for part in self.parts() if part.cut is not None]
        if free:
            raise ConfigError(
                f"{' and '.join(free)}: how many tokens reach a threshold depends on the image, so there is no share to tell: "
                "give keep in its place"
            )
        return left(self.unit, self.sites(host), host)

    def least(self, host: Host) -> float:
        """Tell the smallest `keep` but 0 that this method can be set to in a model like ``host``."""
        return 0.0

    def with_keep(self: M, keep: float) -> M:
        """Return this method with `keep` in place of whatever says how much; where tokens leave stays as it is."""
        options: dict[str, Any] = {name: None for name in self.how_much if hasattr(self, name)}
        return replace(self, **{**options, "keep": keep})

    def with_schedule(self, schedule: Schedule) -> Method:
        """Return this method with another schedule for the decoder, of which one without stages keeps all."""
        if not any(f.name == "schedule" for f in fields(self)):
            raise ConfigError(f"{self.name()} follows no schedule: it has no option `schedule`")
        options: dict[str, Any] = {name: None for name in ("keep", *self.how_much, *self.where) if hasattr(self, name)}
        how = {"schedule": schedule.stages} if schedule.stages else {"keep": 1.0}
        return replace(self, **{**options, **how})

    def with_power(self, t: float, host: Host) -> Method:
        """Return this method with its shares to the power of ``t`` (`Schedule.power`), as near as it can come to that."""
        return self.with_keep(max(self.shares(host).power(t).mean(host.depth), self.least(host)))

    def resolve(self, host: Host) -> Method:
        """Return this method as it is in a model like ``host``, where each part of a sum has a `keep` of its own."""
        return self

    @classmethod
    def name(cls) -> str:
        """Say its name in command lines and configs: the class name in lower case."""
        return cls.__name__.lower()

    def parts(self) -> tuple[Method, ...]:
        """List the methods that this one is composed of, in order; itself if it is not composed."""
        return (self,)

    def terms(self) -> tuple[Method, ...]:
        """List the methods that were written with ``+`` between them; itself if it is no such sum."""
        return (self,)

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        from foveate.sums import Composed  # which is a method, too

        return Composed((self, other))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `foveate.method_from_dict` turns back into an equal method."""
        return {"method": self.name(), **{f.name: plain(getattr(self, f.name)) for f in fields(self)}}

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Method:
        """Build from plain data; unknown names and wrong types raise `ConfigError`."""
        return build(cls, options)
