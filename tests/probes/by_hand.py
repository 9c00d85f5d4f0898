"""A method outside of the vocabulary: every FFN of the language model is passed by a share of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveate import Changes, Host, Method, Site


@dataclass(frozen=True)
class Dimmed(Method):
    """FFN outputs of the language model are multiplied, and its norm runs twice; what the model is called is noted.

    Attributes:
        share: what is left of FFN outputs.
    """

    share: float = 0.5

    def sites(self, host: Host) -> Sequence[Site]:
        return []

    def attach(self, model: nn.Module, host: Host, changes: Changes) -> None:
        language: Any = model.language_model
        for layer in language.layers:
            changes.post(layer.mlp, lambda module, args, output: output * self.share)
        changes.pre(language, lambda module, args, kwargs: (args, {**kwargs, "use_cache": False}))
        changes.instead(language.norm, "forward", lambda stock, hidden: stock(stock(hidden)))
        model.nickname = host.family  # type: ignore[assignment]
        changes.change(lambda: delattr(model, "nickname"))
