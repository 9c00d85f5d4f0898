"""Families that were looked at and cannot be described in the vocabulary of `foveate.models.family`, and why."""

from __future__ import annotations

REFUSED = {
    "gemma3n": "it sees through a convolutional network, which has no blocks of tokens to act in, and its decoder layers "
    "work on several copies of every token",
    "gemma4": "it pads images of different sizes in its vision tower and pools them by position before that ends, and its last "
    "decoder layers attend to keys and values of earlier ones",
    "gemma4_unified": "it has no vision tower: patches of images of different sizes go straight to the language model",
}
