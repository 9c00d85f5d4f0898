"""What decoder layers are given of appended tokens, kept when images are encoded, and given again in place of the images.

A method that appends tokens to an image, shows the text nothing else of it (`foveate.answers.Sight`), and lets its tokens see
nothing but themselves, needs the image only once. What is kept is the input of every layer, from which the layer makes keys and
values at whatever place the image has in a prompt: keys would be those of one place, as they are rotated by it.

In a prompt with such a memory all tokens of the image have left before the first layer. The appended ones come from the memory,
and are set back to it before every layer, as without their image they would become something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveate.errors import ConfigError, UnsupportedModelError
from foveate.method import Method
from foveate.ops.segments import offsets
from foveate.tokens import Tokens

_WEIGHTS = 32  # by which a module is recognised, as if in half precision

if TYPE_CHECKING:
    from foveate.runtime.context import DecoderPass, Record


@dataclass(frozen=True)
class Reader:
    """A method whose appended tokens are what is kept of an image.

    Attributes:
        method: itself.
        layer: the last one of the language model, by whose weights this is recognised.
        others: names of other methods that act in the language model.
        states: how many layers of it carry a state from token to token.
    """

    method: Method
    layer: nn.Module
    others: tuple[str, ...] = ()
    states: int = 0

    def check(self) -> None:
        """Raise an error unless what it appends stands for an image in any prompt."""
        name = self.method.name()
        if self.others:
            raise UnsupportedModelError(
                f"a memory has what decoder layers make of an image with {name}, and {' and '.join(self.others)} would change "
                f"that: attach {name} alone, or with methods that act before the language model"
            )
        if self.states:
            raise UnsupportedModelError(
                f"{self.states} layers of this model carry a state from token to token, in which all of an image is, and not "
                f"only what {name} appends: there is no memory of it; give the pixels"
            )
        if self.method.positions != "keep":
            raise UnsupportedModelError(
                f"{name} with positions={self.method.positions!r} numbers text by the tokens that are there, and with a memory "
                'the image is not: use positions="keep"'
            )

    def weights_with(self, projector: nn.Module) -> tuple[float, ...]:
        """Some weights of all that makes what is kept, LoRA among them."""
        learned = vars(self.method).get("_learned", nn.ModuleDict())
        lora = nn.ParameterList(p for name, p in self.layer.named_parameters() if "lora_B" in name)
        return tuple(x for part in (projector, learned, self.layer, lora) for x in weights_of(part))


@dataclass(eq=False)
class Tape:
    """What is kept of a forward.

    Attributes:
        method: the name of who appends, for messages.
        layers: for each decoder layer ``(M, C)`` what it was given of the appended tokens, span after span.
        counts: how many of them each span has.
        frames: which image or frame of the ``records`` each span is.
        records: of the tower.
    """

    method: str
    layers: list[Tensor] = field(default_factory=list)
    counts: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    records: Sequence[Record] = ()

    def note(self, call: DecoderPass, hidden: Tensor) -> None:
        """Keep what a layer is given."""
        layout = call.layout
        assert layout is not None
        tokens = layout.tokens
        if (
            layout.sight is None
            or not layout.sight.apart
            or not bool(self._hides(layout.sight.group[~tokens.appended], call))
        ):
            raise ConfigError(
                f'{self.method} says stores="appended", so its tokens stand for an image in any prompt: text may not see the '
                "image itself, and the image no text; say a Sight with apart=True that hides it"
            )
        counts = torch.bincount(tokens.segment[tokens.appended], minlength=len(tokens.counts))
        found = tuple(int(n) for n in counts.tolist())
        if self.layers and found != self.counts:
            raise ConfigError(
                f"{self.method} drops appended tokens between layers, and a memory has the same in all of them"
            )
        self.counts, self.frames, self.records = found, call.frames, call.records
        self.layers.append(layout.pick(hidden)[tokens.appended].detach())

    @staticmethod
    def _hides(groups: Tensor, call: DecoderPass) -> Tensor:
        """Tell whether text sees none of these groups."""
        assert call.layout is not None
        assert call.layout.sight is not None
        return ~call.layout.sight.sees[-1].to(groups.device)[groups].any()

    def of_frames(self) -> list[Tensor]:
        """``(L, m, C)`` of each image or frame, in the order of the records."""
        parts = torch.stack(self.layers).split(self.counts, dim=1)
        return [part for _, part in sorted(zip(self.frames, parts), key=lambda pair: pair[0])]


def frames_of(tokens: Tokens, cell: Tensor, records: Sequence[Record]) -> tuple[int, ...]:
    """Tell which image or frame of the ``records`` each span of a prompt is.

    Args:
        tokens: all of the prompt.
        cell: ``(N,)`` the cell of each among those of all records.
    """
    sizes = [h * w for record in records for t, h, w in record.order.grid for _ in range(t)]
    ends = torch.tensor(sizes).cumsum(0)
    first = torch.tensor(offsets(tokens.counts)[:-1], dtype=torch.long)
    return tuple(torch.searchsorted(ends, cell.cpu()[first], right=True).tolist())


def recalled(call: DecoderPass, ended: Sequence[bool], hidden: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """New tokens ``(M, C)`` from a memory, and how many each span gets: none before all of it is there."""
    stored = [part for record in call.records for part in record.stored]
    parts = [stored[frame] for frame, here in zip(call.frames, ended) if here] or [stored[0][:, :0]]
    call.recalled = torch.cat([part.to(hidden.device, hidden.dtype) for part in parts], dim=1)
    return call.recalled[0], tuple(stored[frame].shape[1] if here else 0 for frame, here in zip(call.frames, ended))


def recalls(call: DecoderPass) -> bool:
    """Tell whether the images of a forward come from memories of appended tokens."""
    return any(record.stored for record in call.records)


def at_layer(call: DecoderPass, tape: Tape | None, layer: int, hidden: Tensor) -> Tensor:
    """Return what decoder layer ``layer`` is given, and keep it where images are encoded."""
    assert call.layout is not None
    if tape is not None:
        tape.note(call, hidden)
    if call.recalled is None or not layer or not call.recalled.shape[1]:
        return hidden
    return call.layout.put(hidden, call.recalled[layer])


def weights_of(projector: nn.Module) -> tuple[float, ...]:
    """Some weights of a projector, by which it is recognised in any precision."""
    found = [p for p in projector.parameters() if p.is_floating_point() and not p.is_meta]
    if not found:
        return ()
    largest = max(found, key=torch.numel)
    return tuple(round(float(x), 4) for x in largest.detach().flatten()[:_WEIGHTS].float().cpu())
