"""Families that were looked at and are not supported, and why."""

from __future__ import annotations

REFUSED = {
    "gemma3n": "it sees through a convolutional network, which has no blocks of tokens to act in, and its decoder layers "
    "work on several copies of every token",
    "gemma4_unified": "it has no vision tower: patches of images of different sizes go straight to the language model",
    "kimi_k25": "its vision tower averages the frames of a video and puts patches together that stand in raster order in one "
    "row for all images",
    "mllama": "it has no visual tokens in the language model: layers of cross-attention look at the image",
    "molmo2": "a layer of attention pools patches out of the features of several blocks of its vision tower at once",
    "qwen2_5_omni": "it is several models: compress its `thinker`, which sees",
    "qwen3_omni_moe": "it is several models: compress its `thinker`, which sees",
}
