"""What a method may answer at a site: a `Reduction`, or one of the classes of this file."""

from __future__ import annotations

from dataclasses import dataclass

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


Answer = Reduction | Channels
