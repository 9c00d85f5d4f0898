"""What a method may answer at a site: a `Reduction`, or one of the classes of this file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor

from foveate.tokens import Reduction


@dataclass(frozen=True)
class Channels:
    """The channels of an FFN that visual tokens use, at a site with ``action="channels"``; text uses all of them.

    A gated FFN is ``down(act(gate(x)) * up(x))``: channel ``k`` is row ``k`` of the weights of ``gate`` and ``up``, and column
    ``k`` of that of ``down``. The weights of the channels are copied out of the layer: ``3 * G * K * C`` numbers, which live as
    long as ``index`` does. A method whose channels never change returns the same tensor each time, and they are copied once.

    Attributes:
        index: ``(K,)`` int64, on the device of the tokens, ascending; or ``(G, K)``, several such choices.
        of: with several, ``(S,)`` ints: for each span, which of them its tokens use. A choice for each prompt of a batch is one
            that does not depend on the others.
    """

    index: Tensor
    of: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Sight:
    """A sight says who may attend to whom, from a decoder layer or vision block on, in addition to the model's own mask.

    It is in force until another one at a deeper site replaces it; one of which all of ``sees`` is true, without a window,
    lifts it. A token always sees itself. Whatever comes after this forward (generated tokens, the text of later turns) is
    text, and sees of the cached tokens what the last row of ``sees`` says. Groups mean the same in every forward: visual
    tokens of a later turn or chunk see those that are cached by their numbers, too.

    It is a matter of attention. Where some layers of a model carry a state from token to token in its place (Qwen3.5,
    MiniCPM-V 4.6), these take in every token that is present, so what is hidden from the text in the others still reaches it;
    the report says how many layers that are. A token that must not be known at all is dropped (`Reduction`).

    In the vision tower, where no text is, the last row and column of ``sees`` are those of its special tokens (CLS). Isolated
    attention, where new tokens (`Append`) read the patches and do not disturb them, is
    ``Sight(tokens.appended.long(), torch.tensor([[1, 0, 1], [1, 1, 1], [1, 0, 1]]).bool())``.

    Hollow attention, where a visual token sees the text and its next neighbours alone, is one group and a window:
    ``Sight(torch.zeros(len(tokens), dtype=torch.long, device=tokens.index.device), torch.ones(2, 2, dtype=torch.bool), 256)``.

    Attributes:
        group: ``(N,)`` int64, the group of each token, from 0 to ``G - 1``.
        sees: ``(G + 1, G + 1)`` bool, whether a query of the group of the row sees keys of the group of the column; the last
            row and column are the text's. Best on the CPU, where it is looked at.
        window: a visual token sees of the others only those that are at most so many places away in the full sequence; None:
            all. Text sees them at any distance. (Not in the tower.)
        apart: a visual token sees only visual tokens of its own image or frame, with those that are appended behind it: no
            text, and no other image. What a decoder layer makes of an image then depends on nothing else, and can be kept for
            other prompts (`Method.stores`).
    """

    group: Tensor
    sees: Tensor
    window: int | None = None
    apart: bool = False

    @property
    def hides_nothing(self) -> bool:
        """Whether the model's own mask is all there is."""
        return self.window is None and not self.apart and bool(self.sees.all())


@dataclass(frozen=True)
class Reuse:
    """What a decoder layer takes from an earlier one, in place of computing it (a fact of the site: no method is asked).

    Queries and keys are those that the earlier layer's attention used: after their norm and rotary embedding. The layer's
    own projections are not computed for what is reused, so its attention weights are those of ``source`` and only the values
    are its own.

    Attributes:
        source: the earlier layer; negative counts from the end.
        of: ``qk``, queries and keys; ``q``, queries alone.
        tokens: ``visual``: text computes its own, so generated tokens do, too; of ``qk``, the layer's cache entry holds keys of
            text alone (one that slides, or is quantised, holds all). ``all``: every token of a prompt with an image and of
            what follows it; of ``qk``, the layer's cache entry then holds values only (in a batch of which some rows have no
            image, or after a turn without one, it holds keys as well).
    """

    source: int
    of: Literal["qk", "q"] = "qk"
    tokens: Literal["visual", "all"] = "visual"

    @property
    def drops_keys(self) -> bool:
        """Whether the layer's cache entry holds no keys of what is reused."""
        return self.of == "qk"

    def __str__(self) -> str:
        return f"{'queries and keys' if self.of == 'qk' else 'queries'} of layer {self.source}, {self.tokens} tokens"


@dataclass(frozen=True)
class Append:
    """New tokens behind those of each image or frame, which the prompt does not have: summaries, registers.

    They stand right behind the last token of their span, see all that comes before them and each other in that order, and are
    seen by all that comes later, unless a `Sight` hides them. From here on they are among the method's `Tokens`, where
    `Tokens.appended` tells which they are, so that deeper sites keep or drop them; the cache holds them. The stock model knows
    nothing of them: logits, labels and the length of the cache are those of the prompt. With ``positions="keep"`` they take the
    position of the last token of their span, with ``"renumber"`` they are numbered as if the prompt had had them.

    Before a block of the vision tower they are registers: they and the tokens of their image attend to each other, in blocks
    whose attention is in windows those of the window with the image's last token, until the blocks have run; sites at the
    tower's output do not see them. They come after position embeddings that are added to patches. Where 2x2 patches become one
    token, a new one has as many rows, and its ``C`` is that of `Tokens.hidden`.

    Of a prompt that comes in chunks, a span gets its new tokens with the chunk that brings its last one; the method is then
    shown all of it. Signals do not wait, so a site that asks for some is refused where a chunk cuts a span.

    Attributes:
        hidden: ``(S, V, C)``, as many for each span; or ``(M, C)``, span after span.
        counts: ``(S,)`` ints, how many of ``(M, C)`` each span gets, 0 or more.
        coords: in the tower, ``(S, V, 2)`` or ``(M, 2)``: y and x of the new tokens in the grid of their image, which
            rotary embeddings are made of; None: all are in its middle.
        score: with counts, at the entry, ``(M,)``: of the new tokens only those with a score of 0 or more come, so that their
            number may be learned: in training all of them come, and fade as a `foveate.learning.Relaxation` says.
        bias: with counts, at the entry, ``(M,)`` what is added to the attention logits of their keys, as `Reduction.bias` is.
    """

    hidden: Tensor
    counts: tuple[int, ...] | None = None
    coords: Tensor | None = None
    score: Tensor | None = None
    bias: Tensor | None = None

    def packed(self) -> tuple[Tensor, tuple[int, ...]]:
        """All new tokens ``(M, C)``, span after span, and how many each span gets."""
        return _packed(self.hidden, self.counts)

    def chosen(self) -> Append:
        """Return the new tokens that come, by their scores; this asks the device once."""
        if self.score is None or self.counts is None:
            return self
        stays = self.score >= 0
        counts = tuple(int(part.sum()) for part in stays.cpu().split(self.counts))
        bias = None if self.bias is None else self.bias[stays]
        return replace(self, hidden=self.hidden[stays], counts=counts, score=None, bias=bias)


@dataclass(frozen=True)
class Remember:
    """What is kept of each image for the text that comes after it, at a site with ``action="remember"``.

    It is no token: nothing attends to it, and it lives with the KV cache, beside it. `Method.inject` is given it, of all images
    before a token of text. An image, or a whole video, is remembered once, when all of it is there, also where a prompt comes
    in chunks; what is remembered of one must not depend on the others.

    Attributes:
        rows: ``(S, V, D)``, as many for each span; or ``(M, D)``, span after span. ``D`` is what the method wants it to be.
        counts: ``(S,)`` ints, how many of ``(M, D)`` are of each span, 0 or more.
    """

    rows: Tensor
    counts: tuple[int, ...] | None = None

    def packed(self) -> tuple[Tensor, tuple[int, ...]]:
        """All rows ``(M, D)``, span after span, and how many are of each span."""
        return _packed(self.rows, self.counts)


def _packed(x: Tensor, counts: tuple[int, ...] | None) -> tuple[Tensor, tuple[int, ...]]:
    """``(S, V, D)``, or ``(M, D)`` with counts, as the latter."""
    return (x, counts) if counts is not None else (x.flatten(0, 1), (x.shape[1],) * x.shape[0])


Answer: TypeAlias = Reduction | Channels | Sight | Append | Remember
