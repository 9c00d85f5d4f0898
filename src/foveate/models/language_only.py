"""Families of which foveate knows the language model alone: what makes their image features is nothing that it can act in."""

from __future__ import annotations

from foveate.models.family import NOWHERE, Decoder, Family, unseen


def language_only(model_type: str, module: str, because: str, decoder: str = "language_model") -> Family:
    """A family whose features come from ``module``; ``because`` says, in words, why no more is known of them."""
    return Family(model_type, unseen(module, because), Decoder(module=decoder), frames=NOWHERE)
