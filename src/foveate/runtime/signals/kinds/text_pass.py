"""What the language model makes of a prompt without its images."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import CHANNELS, Asker, Draw, Kind, Need
from foveate.signal import Signal


class TextPass(Kind):
    """Last hidden states ``(M, C)`` of the text tokens of a prompt without its images, sample after sample
    (`Tokens.text_counts` each): what the language model puts out, after its last norm, of the text of a sample alone. The last
    one of a sample is that of its question.

    It costs one more forward of the language model over the text, once for all sites that ask, and carries no gradients. Of a
    later turn, or of a chunk of a prompt, it is that of its own text. The text is numbered from 0 on, as if it were a prompt;
    features that stand for no patch (newlines between tiles) are text here as everywhere.
    """

    name = "text_pass"
    places = frozenset({"lm_entry", "decoder"})
    layered = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"text_pass"})

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        own = [name for name, axis in by.family.decoder.layer_args.items() if axis == "own"]
        if own:
            raise by.refuse(
                signal,
                f"layers of {by.host.family!r} are given {own[0]!r} of every token, which is not known of a text that stands "
                "alone: use the hidden states of the text, `text`",
            )

    def read(self, here: Presence) -> Tensor:
        return here.alone()

    def made_up(self, draw: Draw) -> Tensor:
        return draw(CHANNELS)
