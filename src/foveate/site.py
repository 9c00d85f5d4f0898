"""Sites: the places of a forward pass where a method may act, and what it may know of the model when it chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foveate.answers import Reuse
from foveate.errors import ConfigError, shown
from foveate.schedule import Schedule, Stage, check_ratio
from foveate.serialise import check
from foveate.signal import Signal, signal_of

Place = Literal["pixels", "tower", "tower_output", "lm_entry", "decoder", "decode", "cache"]
Positions = Literal["keep", "renumber", "native", "virtual"]
#: the parts of a decoder layer that some actions are for; all others are for the whole of it
PARTS: dict[str, tuple[str, ...]] = {"skip": ("attention", "ffn"), "channels": ("ffn",), "inject": ("ffn",)}
_OF_NO_LAYER = ("pixels", "tower_output", "lm_entry")
_AT_STEPS = ("lm_entry", "decoder", "cache")
_NAMED = ("attend", "sight", "append", "remember")  # actions that the name of a site says
Verb = Literal[
    "reduce", "park", "attend", "restore", "skip", "channels", "sight", "append", "reuse", "remember", "inject"
]
Into = Literal["text", "prompt", "generated"]


@dataclass(frozen=True)
class Site:
    """A place in the forward pass where the token set may change.

    Attributes:
        at: ``pixels`` (before patch embedding), ``tower`` (a vision block), ``tower_output`` (the selected features,
            before the projector), ``lm_entry`` (features, positions and text meet), ``decoder`` (before a decoder
            layer), ``decode`` (the KV cache of a decoder layer and of all after it, at every generated token), ``cache``
            (the KV cache of one decoder layer, once, when the prompt has ended: those not kept are freed).
        layer: block or decoder layer; negative counts from the end.
        keep: share of the tokens present that survive, for `Tokens.budget`.
        shares: at one of several cuts of a schedule: the shares of the tokens at its first cut that it leaves after each of
            them, up to this one, so that the schedule is rounded and not each cut. `cascade` makes such sites.
        where: inside a tower block: ``before`` it, or ``mid``, between its attention and its FFN.
        action: ``reduce``; ``park`` (those not kept come back later); ``attend`` (the attention of this block or layer sees
            those parked, too: as `Method.restore` says they are now, they lend it keys and values); ``restore`` (they come
            back here); at a ``part``, ``skip`` (only those kept go through it, the others pass on what they were) and, of the
            FFN, ``channels`` (visual tokens use some of its channels only, as `Channels` says); ``sight`` (who sees whom from
            here on, as `Sight` says); ``reuse`` (a decoder layer attends with queries and keys of an earlier one);
            ``append`` (new tokens behind those of each span, as `Append` says); ``remember`` (something is kept of each image
            for the text after it, as `Method.remember` says) and, of the FFN, ``inject`` (something of that is added to the
            FFN's output for tokens of text, as `Method.inject` says).
        unit: tokens of a tower with a patch merger: ``merge`` (the 2x2 block that becomes one token) or ``patch``
            (only for parking: a dropped patch would leave a hole inside a block).
        signals: what `Tokens` must carry, each a `Signal` or the name of its kind; what nobody asks for is never computed.
        part: of a decoder layer, ``attention`` or ``ffn``. The site is visited when that part is about to run: `Tokens.hidden`
            is its input, after the norm, and signals tell of the last attention before it (for the FFN, this layer's own).
        reuse: with ``action="reuse"``, what this layer takes from an earlier one.
        step: the denoising step at which the site acts, once a prompt, in a model that writes its answer in `Host.steps` of
            them: what leaves there is gone for the steps that follow, too. Cache sites act before that step, with signals of
            the one before (at step 0, of the prompt); sites of the language model act in it. None: at the prompt, or at
            every step that runs all of it again.
        into: with ``action="inject"``, the tokens that it is for, all of which come after an image: ``text``, of the prompt and
            generated; only the text of the ``prompt``; or only what is ``generated``.
    """

    at: Place
    layer: int = 0
    keep: float = 1.0
    where: Literal["before", "mid"] = "before"
    action: Verb = "reduce"
    unit: Literal["merge", "patch"] = "merge"
    signals: tuple[Signal | str, ...] = ()
    shares: tuple[float, ...] = ()
    part: Literal["", "attention", "ffn"] = ""
    reuse: Reuse | None = None
    step: int | None = None
    into: Into = "text"

    def __post_init__(self) -> None:
        check(self)
        check_ratio("keep", self.keep)
        parts = PARTS.get(self.action, ("",))
        if self.part not in parts:
            where = " or ".join(f'part="{part}"' if part else "the whole layer (no part)" for part in parts)
            raise ConfigError(f"action={self.action!r} at part={self.part!r}: it is for {where}")
        if self.part and self.at not in ("decoder", "decode"):
            raise ConfigError(f"part={self.part!r} is a part of a decoder layer, and {self.at} has none")
        if (self.action == "reuse") != (self.reuse is not None):
            raise ConfigError(
                'reuse=Reuse(source) says whose queries and keys a layer takes, and goes with action="reuse": give both or none'
            )
        if self.into != "text" and self.action != "inject":
            raise ConfigError(f'into={self.into!r} says for whom something is injected, and goes with action="inject"')
        if not isinstance(self.signals, (list, tuple)):
            raise ConfigError(f"Site.signals={shown(self.signals)}: expected a tuple of signals, such as ('keys',)")
        object.__setattr__(self, "signals", tuple(map(signal_of, self.signals)))
        self._refuse_nowhere()

    def _refuse_nowhere(self) -> None:
        """Raise `ConfigError` for what no model has. What a model lacks is said when the method is put on it."""
        if self.where == "mid" and self.at != "tower":
            raise ConfigError(f'where="mid" is inside a vision block; {self.at} has no such place')
        if self.action == "attend" and (self.at not in ("tower", "decoder") or self.where == "mid"):
            raise ConfigError(f"attending to parked tokens is said before a block or layer, not at {self}")
        if self.action == "append" and (self.where == "mid" or self.unit == "patch"):
            raise ConfigError(
                f"new tokens come before a block, as wide as tokens are, not single patches, so not at {self}"
            )
        if self.action == "sight" and (self.where == "mid" or self.unit == "patch"):
            raise ConfigError(
                f"who sees whom is said before a block, of tokens and not of single patches, so not at {self}"
            )
        if self.action == "park" and self.at == "tower_output":
            raise ConfigError(f"no block comes after {self}, so parking there saves nothing: park earlier")
        if self.unit == "patch" and not self.at.startswith("tower"):
            raise ConfigError(f'unit="patch" is of tokens in the vision tower, and {self.at} is not there')
        if self.signals and self.action == "inject":
            raise ConfigError(
                "signals are of visual tokens, and what is injected is for text: ask where it is remembered"
            )
        if self.layer and self.at in _OF_NO_LAYER:
            raise ConfigError(f"{self.at} is at no layer: leave layer={self.layer} out")
        if self.at == "decode" and self.layer == 0:
            raise ConfigError("decode sites start at layer 1, where an attention has been computed")
        if self.step is not None and self.step < 0:
            raise ConfigError(f"step={self.step}: denoising steps count from 0")
        if self.step is not None and (self.action != "reduce" or self.at not in _AT_STEPS):
            raise ConfigError(
                f"step={self.step}: what tokens do at a denoising step is leave for good, at {' or '.join(_AT_STEPS)}, so "
                f"{self} is none: leave step out"
            )
        if self.at == "cache" and self.shares:
            raise ConfigError(
                "the cache of each layer holds tokens of its own, so cuts of several layers are no schedule: say `keep` at each"
            )

    # -- one constructor for each place, and for what is done there ------------------------------------------------------

    @classmethod
    def pixels(cls, keep: float = 1.0, **options: Any) -> Site:
        """Make a site before patch embedding, where images are resized."""
        return cls("pixels", keep=keep, **options)

    @classmethod
    def tower(cls, block: int, keep: float = 1.0, *, mid: bool = False, **options: Any) -> Site:
        """Make a site before a vision block, or between its attention and its FFN (``mid``)."""
        return cls("tower", block, keep, "mid" if mid else "before", **options)

    @classmethod
    def output(cls, keep: float = 1.0, **options: Any) -> Site:
        """Make a site at the tower's output, before the projector."""
        return cls("tower_output", keep=keep, **options)

    @classmethod
    def entry(cls, keep: float = 1.0, **options: Any) -> Site:
        """Make a site where features and text meet, before the first decoder layer."""
        return cls("lm_entry", keep=keep, **options)

    @classmethod
    def decoder(cls, layer: int, keep: float = 1.0, **options: Any) -> Site:
        """Make a site before a decoder layer."""
        return cls("decoder", layer, keep, **options)

    @classmethod
    def decode(cls, layer: int, keep: float = 1.0, **options: Any) -> Site:
        """Make a site at the KV cache of a decoder layer and of all after it, visited at every generated token."""
        return cls("decode", layer, keep, **options)

    @classmethod
    def cache(cls, layer: int, keep: float = 1.0, **options: Any) -> Site:
        """Make a site at the KV cache of one decoder layer, visited once, when the prompt has ended."""
        return cls("cache", layer, keep, **options)

    @classmethod
    def park(cls, block: int, keep: float = 1.0, *, mid: bool = False, **options: Any) -> Site:
        """Make a site before (or inside) a vision block where tokens are set aside that come back later; see `restore`."""
        return cls.tower(block, keep, mid=mid, action="park", **options)

    @classmethod
    def attend(cls, block: int) -> Site:
        """Make a site at a vision block whose attention sees parked tokens, too."""
        return cls("tower", block, action="attend")

    @classmethod
    def restore(cls, block: int | None = None) -> Site:
        """Make a site where parked tokens come back: before a vision block, or without one at the tower's output."""
        return cls.output(action="restore") if block is None else cls.tower(block, action="restore")

    @classmethod
    def skip(cls, layer: int, part: Literal["attention", "ffn"], keep: float = 1.0, **options: Any) -> Site:
        """Make a site at a part of a decoder layer, through which only the tokens that are kept go."""
        return cls("decoder", layer, keep, action="skip", part=part, **options)

    @classmethod
    def channels(cls, layer: int, **options: Any) -> Site:
        """Make a site at the FFN of a decoder layer, of which visual tokens use some channels."""
        return cls("decoder", layer, action="channels", part="ffn", **options)

    @classmethod
    def sight(cls, layer: int | None = None, **options: Any) -> Site:
        """Make a site that says who sees whom from a decoder layer on; without one, from the entry on."""
        return cls.entry(action="sight", **options) if layer is None else cls.decoder(layer, action="sight", **options)

    @classmethod
    def append(cls, block: int | None = None, **options: Any) -> Site:
        """Make a site where new tokens come behind those of each image: before a vision block, or at the entry (`entry`)."""
        if block is None:
            return cls.entry(action="append", **options)
        return cls.tower(block, action="append", **options)

    @classmethod
    def remember(cls, layer: int | None = None, **options: Any) -> Site:
        """Make a site where something is kept of each image: before a decoder layer, or where features and text meet."""
        if layer is None:
            return cls.entry(action="remember", **options)
        return cls.decoder(layer, action="remember", **options)

    @classmethod
    def inject(cls, layer: int, into: Into = "text", **options: Any) -> Site:
        """Make a site where something that was remembered is added to the FFN of a decoder layer, for text after an image."""
        return cls("decoder", layer, action="inject", part="ffn", into=into, **options)

    @property
    def asked(self) -> tuple[Signal, ...]:
        """The signals, each by its address."""
        return tuple(map(signal_of, self.signals))

    @classmethod
    def cascade(cls, at: Place, schedule: Schedule | Sequence[Stage], **options: Any) -> list[Site]:
        """Return the sites of a schedule: before each of its layers its share of all tokens is left; up to none.

        A site that leaves nothing has no choice to make, and asks for no signals.
        """
        found: list[Site] = []
        shares: tuple[float, ...] = ()
        for layer, share in schedule.stages if isinstance(schedule, Schedule) else schedule:
            present = shares[-1] if shares else 1.0
            if present == 0:
                break
            shares = (*shares, share)
            asked = options if share else {**options, "signals": ()}
            found.append(cls(at, layer, share / present, shares=shares, **asked))
        return found

    def __str__(self) -> str:
        start = "" if self.step is None else f" at step {self.step}"
        if self.at in _OF_NO_LAYER:
            return self.at + (f" ({self.action})" if self.action in _NAMED else "") + start
        if self.reuse is not None:
            return f"{self.at} {self.layer} ({'q, k' if self.reuse.of == 'qk' else 'q'} of {self.reuse.source})" + start
        inside = " (mid)" if self.where == "mid" else ""
        inside += f" {self.part}" if self.part else ""
        said = f" ({self.action})" if self.part or self.action in _NAMED else ""
        said = f" (inject into {self.into})" if self.into != "text" else said
        return f"{self.at} {self.layer}{inside}{said}{start}"


@dataclass(frozen=True)
class Host:
    """What a method may know about the model when it says its sites.

    Attributes:
        family: its name among `foveate.list_families()`, ``config.model_type`` for most.
        blocks: vision blocks whose output reaches the language model (LLaVA's last block does not).
        layers: decoder layers before which tokens can leave (not those that attend to the keys of earlier ones).
        has_cls: the tower has a CLS token, so the signal ``cls_row`` exists.
        frames: places (`Site.at`) where the frames of a video share a clip in `Spans`; elsewhere each is a clip of its own.
        width: channels of a token in the language model; 0 where only the config is known.
        tower_width: the same in the tower, all patches of a token together.
        output_width: the same at its output, where a block may have merged them; of features of one block.
        output_rows: patches of a token there, side by side.
        source: folder or name that the model was loaded from; "": nobody knows.
        depth: all decoder layers, those that attend to the keys of earlier ones too: what a mean per layer is over.
        steps: denoising steps in which the model writes an answer, at most; 0: it writes word by word.
        reads_cache: such a step reads the KV cache of the prompt, where sites of the cache act. Else it runs the prompt again,
            and sites at the entry and before decoder layers act in it.
        fixed_caches: decoder layers whose cache has a size of its own (a window, a state), so that no site acts there.
    """

    family: str
    blocks: int
    layers: int
    has_cls: bool
    frames: frozenset[str] = frozenset()
    width: int = 0
    tower_width: int = 0
    output_width: int = 0
    output_rows: int = 1
    source: str = ""
    depth: int = 0
    steps: int = 0
    reads_cache: bool = False
    fixed_caches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.depth:
            object.__setattr__(self, "depth", self.layers)

    @property
    def growing_caches(self) -> tuple[int, ...]:
        """The layers at whose cache a site may act."""
        return tuple(layer for layer in range(self.layers) if layer not in self.fixed_caches)
