"""Families that were looked at and are not supported, and why."""

from __future__ import annotations

REFUSED = {
    "gemma3n": "it sees through a convolutional network, which has no blocks of tokens to act in, and its decoder layers "
    "work on several copies of every token",
    "gemma4": "it pads images of different sizes in its vision tower and pools them by position before that ends, and its last "
    "decoder layers attend to keys and values of earlier ones",
    "gemma4_unified": "it has no vision tower: patches of images of different sizes go straight to the language model",
    "mllama": "it has no visual tokens in the language model: layers of cross-attention look at the image",
    "molmo2": "a layer of attention pools patches out of the features of several blocks of its vision tower at once",
    "qwen2_5_omni": "it is several models: compress its `thinker`, which sees",
    "qwen3_omni_moe": "it is several models: compress its `thinker`, which sees",
}
