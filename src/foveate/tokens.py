"""What a method sees and what it says: `Tokens` in, `Reduction` out.

Tokens are packed: the visual tokens of all spans (images, video frames) of the call, one after another, without
padding, text or batch. ``N`` tokens, ``S`` spans, ``C`` channels, ``H`` heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from foveate.errors import ConfigError, UnknownNameError
from foveate.ops import merge, segments, select
from foveate.schedule import budget
from foveate.signal import Signal, Signals, kinds, signal_of

if TYPE_CHECKING:
    from foveate.site import Site

Scope = Literal["frame", "clip", "sample"]


@dataclass(frozen=True)
class Spans:
    """The spans of a call, in packed order. Host-side facts that no reduction changes; one entry per span."""

    shape: tuple[tuple[int, int], ...]  # token grid (height, width)
    clip: tuple[int, ...]  # frames of one video share a clip number; an image is a clip of its own
    frame: tuple[int, ...]  # index of the frame in its clip, 0 for an image
    row: tuple[int, ...]  # of the batch (inside the tower, where rows are not known: the clip)
    sample: tuple[int, ...] = ()  # of the batch: the row, where a row is not packed with several
    number: tuple[int, ...] = ()  # in the language model: the same at all sites, and in all chunks of a prompt

    def __post_init__(self) -> None:
        if not self.sample:
            object.__setattr__(self, "sample", self.row)
        if not self.number:
            object.__setattr__(self, "number", tuple(range(len(self.row))))

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens per span before any reduction."""
        return tuple(height * width for height, width in self.shape)

    @property
    def clips(self) -> tuple[tuple[int, ...], ...]:
        """The spans of each clip: those of a video's frames, which come one after another, or that of an image."""
        runs = groupby(range(len(self)), key=lambda span: (self.row[span], self.clip[span]))
        return tuple(tuple(run) for _, run in runs)


@dataclass(frozen=True)
class Tokens:
    """The visual tokens that are present at a site.

    Attributes:
        spans: facts about the spans.
        counts: ``(S,)`` ints, tokens now present per span; sums to ``N``.
        index: ``(N,)`` int64, raster index ``y * width + x`` of each token in its span's original grid.
        sizes: ``(N,)`` fp32, how many original tokens each one stands for (1 until something is merged).
        coords: ``(N, 3)`` fp32, frame, y and x in the span's grid; a merged token may carry a centroid.
        hidden: ``(N, C)`` hidden states. In a tower whose projector joins ``u`` patches to one token (2x2 mergers),
            a token is that whole unit and ``C`` is ``u`` times the tower's width, patch after patch.
        signals: what the site asked for, by address: ``tokens.keys`` for a signal without one, else `signal`.
        seen: ``(S,)`` ints, tokens of the span's clip that earlier forwards already brought here (chunked prefill), else 0.
        total: ``(S,)`` ints, where a prompt comes in chunks: tokens of the span's clip that all of them bring to the method's
            first site in the language model, 0 if unknown; else empty.
        history: ``(S,)`` counts before each reduction so far, from the first to the last one.
        text_counts: text tokens per sample of the batch, for signals of the text.
        state: a dict of the method's own, the same one at all of its sites, from the first one that a prompt meets (in the
            vision tower, too) to the end of the KV cache. It is one for all rows of the call. `Method.follow` says what
            becomes of it when rows or tokens leave the cache.
        strict: whether scores are looked at, which waits for the device.
        activations: at a site of part ``ffn`` whose FFN is a gated one of plain layers: ``act(gate(x)) * up(x)``, of as many
            channels as it has, for any rows ``x (M, C)`` of ``hidden``. What that costs is counted by the runtime.
        scope: what shares one budget (`Method.scope`): each ``frame``, each ``clip``, or all images of a ``sample``.
        pooled: the tokens of a scope compete in one ranking (`Method.pooled`); those of a sample always do.
        marks: ``(N,)`` bool, which tokens were `appended`, or None: none.
    """

    spans: Spans
    counts: tuple[int, ...]
    index: Tensor
    sizes: Tensor
    coords: Tensor
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    signals: Mapping[Any, Tensor] = field(default_factory=dict)
    seen: tuple[int, ...] = ()
    total: tuple[int, ...] = ()
    history: tuple[tuple[int, ...], ...] = ()
    text_counts: tuple[int, ...] = ()
    state: MutableMapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    activations: Callable[[Tensor], Tensor] | None = None
    scope: Scope = "clip"
    pooled: bool = False
    marks: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.signals, Signals):
            object.__setattr__(self, "signals", Signals(self.signals))

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def appended(self) -> Tensor:
        """``(N,)`` bool: tokens that a method has put behind those of an image (`foveate.answers.Append`); their ``index`` is
        that of the last cell of its grid, and so are ``coords``, but in the tower, where the method may say them."""
        return torch.zeros_like(self.index, dtype=torch.bool) if self.marks is None else self.marks

    @property
    def segment(self) -> Tensor:
        """``(N,)`` int64: the span of each token."""
        return segments.segment_ids(self.counts, self.index.device)

    @property
    def sample(self) -> Tensor:
        """``(N,)`` int64: the sample of each token, which is the row of `text_counts` and of signals of the text."""
        return torch.tensor(self.spans.sample, dtype=torch.long).to(self.index.device, non_blocking=True)[self.segment]

    def __getattr__(self, name: str) -> Tensor:
        """Return a signal without an address, by its kind: ``tokens.keys``."""
        if name.startswith("_") or name not in kinds():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.signal(signal_of(name))

    def signal(
        self,
        kind: str | Signal,
        layer: int | None = None,
        of: Literal["visual", "text", "cls", "appended"] = "visual",
        **more: Any,
    ) -> Tensor:
        """Return a signal by its address, as the site asked for it: ``tokens.signal("cls_row", layer=8)``.

        The kinds say what they are in ``foveate/runtime/signals/kinds``; see `foveate.signal.Signal` for the address.
        """
        asked = kind if isinstance(kind, Signal) else Signal(kind, layer, of, **more)
        if asked not in self.signals:
            word = repr(asked.kind) if asked == Signal(asked.kind) else str(asked)
            others = f" (it asks for {', '.join(map(str, self.signals))})" if self.signals else ""
            raise UnknownNameError(f"signal {word} was not asked for: add it to the `signals` of this site{others}")
        return self.signals[asked]

    @property
    def name(self) -> Tensor:
        """``(N,)`` int64: a number for each token that is the same at all sites of the language model."""
        span = torch.tensor(self.spans.number, dtype=torch.long).to(self.index.device, non_blocking=True)
        return span[self.segment] << 24 | self.index  # (no span has 16 million tokens)

    @property
    def clip_counts(self) -> tuple[int, ...]:
        """Tokens now present per clip: an image, or all frames of a video; sums to ``N``."""
        return tuple(sum(self.counts[span] for span in clip) for clip in self.spans.clips)

    @property
    def pools(self) -> tuple[tuple[int, ...], ...]:
        """The spans that share a budget: those of a frame, a clip or a sample, as `scope` says."""
        if self.scope == "clip":
            return self.spans.clips
        if self.scope == "frame":
            return tuple((span,) for span in range(len(self.spans)))
        runs = groupby(range(len(self.spans)), key=lambda span: (self.spans.row[span], self.spans.sample[span]))
        return tuple(tuple(run) for _, run in runs)

    @property
    def pool_counts(self) -> tuple[int, ...]:
        """Tokens now present per pool; sums to ``N``."""
        return tuple(sum(self.counts[span] for span in pool) for pool in self.pools)

    def pool_budget(self, keep: float | Site) -> tuple[int, ...]:
        """Survivors per pool, of which each span may have any part; otherwise like `budget`."""
        counts = self.budget(keep)
        return tuple(sum(counts[span] for span in pool) for pool in self.pools)

    def budget(self, keep: float | Site) -> tuple[int, ...]:
        """Survivors per span, rounded once per image or video, or whatever `scope` says (`foveate.schedule.budget`).

        Args:
            keep: the share that survives of the tokens present; or a site, for its share. At a site of `Site.cascade` the
                schedule is rounded, not each of its cuts.
        """
        share = keep if isinstance(keep, (int, float)) else keep.shares or keep.keep
        # Of a share of what is present, parts of an image add up whatever the whole will be. What the whole brings to the first
        # cut of a schedule is not known where other cuts of the method come before.
        total = self.total if isinstance(share, tuple) and len(self.history) < len(share) else ()
        return budget(self.counts, share, self.seen, clips=self.pools, history=self.history, total=total)

    def select(self, keep: Tensor, counts: tuple[int, ...]) -> Tokens:
        """The tokens at the packed indices ``keep``, without signals."""
        return replace(
            self,
            counts=counts,
            index=self.index[keep],
            sizes=self.sizes[keep],
            coords=self.coords[keep],
            hidden=self.hidden[keep] if self.hidden.numel() else self.hidden,
            signals={},
            activations=None,
            history=(*self.history, self.counts),
            marks=None if self.marks is None else self.marks[keep],
        )

    def keep_best(self, score: Tensor, keep: float | Site) -> Reduction:
        """Keep the ``budget(keep)`` highest scores ``(N,)`` of each span; where tokens are pooled, of each pool."""
        if self.pooled or self.scope == "sample":
            kept = self.pool_budget(keep)
            return self.keep_pooled(select.top_k(score, self.pool_counts, kept), kept)
        counts = self.budget(keep)
        return Reduction(select.top_k(score, self.counts, counts), counts)

    def keep_above(self, score: Tensor, threshold: float) -> Reduction:
        """Keep the tokens whose score ``(N,)`` is ``threshold`` or more, and the best one of each image or video (of whatever
        `scope` says) in any case. The count depends on the data: this asks the device."""
        begun = [any(self.seen[span] for span in pool) if self.seen else False for pool in self.pools]
        least = [
            0 if earlier else min(1, n) for earlier, n in zip(begun, self.pool_counts)
        ]  # of chunks the first one has it
        best = select.top_k(score, self.pool_counts, least)
        return self.keep_mask((score >= threshold).index_fill(0, best, True))

    def keep_none(self) -> Reduction:
        """Keep no token."""
        return Reduction(torch.empty(0, dtype=torch.long, device=self.index.device), (0,) * len(self.counts))

    def keep_pooled(self, keep: Tensor, counts: tuple[int, ...]) -> Reduction:
        """Keep the packed indices ``keep``, ascending, so many of each pool; asks the device only where a pool has several
        spans, how many are of which."""
        return Reduction(keep, counts) if len(counts) == len(self.counts) else self.keep_indices(keep)

    def keep_indices(self, keep: Tensor) -> Reduction:
        """Keep the packed indices ``keep``, ascending; asks the device once how many that are in each span."""
        per_span = torch.bincount(self.segment[keep], minlength=len(self.counts)).tolist()
        return Reduction(keep, tuple(int(count) for count in per_span))

    def keep_mask(self, mask: Tensor) -> Reduction:
        """Keep where ``mask (N,)`` is true. The count depends on the data: this asks the device."""
        return self.keep_indices(mask.nonzero().flatten())

    def keep_chosen(self, names: Sequence[Tensor]) -> Reduction:
        """Keep the tokens that have one of the `name`s, as an earlier site has chosen them, in so many chunks of a prompt; for
        `Site("cache")`. Asks the device once for all layers that hold the same tokens."""
        known = self.state.setdefault("kept of chosen", {})
        same = len(names), self.spans.number, self.counts, self.history
        if same not in known:
            known[same] = self.keep_mask(torch.isin(self.name, torch.cat(list(names))))
        reduction: Reduction = known[same]
        return reduction

    def merge_into(
        self, keep: Tensor, counts: tuple[int, ...], group: Tensor, rule: merge.Rule = "sizes", *, move: bool = False
    ) -> Reduction:
        """Let every token join a survivor: new hidden states and sizes, and for the report who joined whom.

        A token may join a survivor in another frame of its video (and leave its own frame empty), not one in another image.

        Args:
            keep: ``(K,)`` packed indices of the survivors, ascending. Each is in its own group.
            counts: survivors per span.
            group: ``(N,)`` int64, the survivor that each token becomes part of, as an index into ``keep``; ``K``: none, it is
                dropped.
            rule: a survivor becomes the mean of its group by ``sizes``, the plain ``mean``, the ``sum``, or itself plus the
                mean of the others (``survivor+mean``).
            move: put a survivor where its members are on the average, by size; else it stays at its place.
        """
        if group.shape != (len(self),) or group.dtype != torch.long:
            raise ConfigError(
                f"merge_into: group is {str(group.dtype).removeprefix('torch.')} {tuple(group.shape)}, expected int64 "
                f"({len(self)},), the survivor of each token"
            )
        if self.strict:
            _check_groups(keep, group)
        return Reduction(
            keep,
            counts,
            merge.merged(self.hidden, self.sizes, keep, group, rule) if self.hidden.numel() else None,
            segments.segment_sum(self.sizes, group, len(keep) + 1)[:-1],
            merge.merged(self.coords, self.sizes, keep, group, "sizes") if move else None,
            groups=lambda: group,
        )

    def merge_pairs(
        self, source: Tensor, target: Tensor, merges: Sequence[int], rule: merge.Rule = "sizes"
    ) -> Reduction:
        """Merge each token of ``source`` into its ``target``, by a rule of `merge_into`; all others stay as they are.

        Args:
            source: ``(M,)`` packed indices; none is there twice, or is a target.
            target: ``(M,)`` packed indices, each of the same span as its source.
            merges: how many of them are in each span.
        """
        keep = select.complement(source, len(self))
        place = select.rank(keep, len(self))
        counts = tuple(n - merged for n, merged in zip(self.counts, merges))
        return self.merge_into(keep, counts, place.index_copy(0, source, place[target]), rule)


def _check_groups(keep: Tensor, group: Tensor) -> None:
    """Raise `ConfigError` unless each token has joined a survivor or none, and each survivor itself."""
    k = len(keep)
    outside = group[(group < 0) | (group > k)].tolist()
    if outside:
        raise ConfigError(
            f"merge_into: group has {outside[0]}, expected 0 to {k - 1}, or {k} for a token that is dropped"
        )
    strays = (group[keep.clamp(0, len(group) - 1)] != torch.arange(k, device=keep.device)).nonzero().flatten().tolist()
    if strays:
        i = strays[0]
        raise ConfigError(f"merge_into: survivor {i} is in group {int(group[keep[i]])}, expected it in its own, {i}")


@dataclass(frozen=True)
class Reduction:
    """What a method decided.

    Attributes:
        keep: ``(K,)`` int64, packed indices of the survivors, ascending. A merged token survives as one member.
        counts: ``(S,)`` ints, survivors per span; sums to ``K``.
        hidden: ``(K, C)`` new values of the survivors (merging), or None: unchanged.
        sizes: ``(K,)`` new sizes, or None: unchanged.
        coords: ``(K, 3)`` new coordinates, or None: unchanged.
        shape: at a ``pixels`` site, the ``(height, width)`` token grid that each span is resized to; ``keep`` is then the
            original token that stands for each cell of the new grid, in raster order.
        groups: of a method that merges, for reports and pictures: gives ``(N,)`` int64, the survivor that each token has
            become part of, as an index into ``keep``, or ``K`` where it is in none. Nobody calls it while the model runs, but
            for ``positions="virtual"``.
        bias: ``(K,)`` floats that are added to the attention logits of the survivors' keys, in every decoder layer from here
            on, whoever attends to them; None: nothing is. The logarithm of a gate lets a token fade as training wants it
            (`foveate.learning.Relaxation`). It is not in the cache: what comes in later forwards sees the tokens without it.
    """

    keep: Tensor
    counts: tuple[int, ...]
    hidden: Tensor | None = None
    sizes: Tensor | None = None
    coords: Tensor | None = None
    shape: tuple[tuple[int, int], ...] | None = None
    groups: Callable[[], Tensor] | None = None
    bias: Tensor | None = None

    def survivors(self, tokens: Tokens) -> Tokens:
        """Return the survivors as tokens, new values in place."""
        kept = tokens.select(self.keep, self.counts)
        return replace(
            kept,
            hidden=kept.hidden if self.hidden is None else self.hidden,
            sizes=kept.sizes if self.sizes is None else self.sizes,
            coords=kept.coords if self.coords is None else self.coords,
        )


@dataclass(frozen=True)
class Parked:
    """Tokens set aside at a parking site.

    Attributes:
        tokens: all tokens as they were there, the kept ones too.
        keep: ``(K,)`` packed indices of those that went on.
        state: a dict of the method's own that lives until they are restored.
    """

    tokens: Tokens
    keep: Tensor
    state: MutableMapping[str, Any] = field(default_factory=dict)
