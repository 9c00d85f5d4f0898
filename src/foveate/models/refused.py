"""Families that were looked at and are not supported, and why."""

from __future__ import annotations

_CROSS = "it has no visual tokens in the language model: layers of cross-attention look at the image"
_ENCODER = (
    "it is an encoder and a decoder: what it writes looks at the image by cross-attention, not as tokens of a prompt"
)
_INDEXER = "its decoder layers choose what to attend to by indexers, which number every token in a cache of their own"
_NEIGHBOURS = (
    "short convolutions in every decoder layer mix each token with those before it, whoever leaves, and attention goes by "
    "distance"
)
_HANDS_ON = "its `generate()` hands embeddings to a language model that is not told which of them are an image"
_BY_MASK = "a mask of its own says where an image stands, and not placeholders in the prompt"
_COPIES = "its decoder layers work on several copies of every token, and " + _INDEXER.removeprefix("its ")
_WHOLE = "it is several models: compress its `thinker`, which sees"

REFUSED = {
    "blip": _CROSS,
    "blip-2": _HANDS_ON,
    "chameleon": "one module puts the words of an image into the prompt and is the language model, too, so there is nothing in "
    "between where foveate could look",
    "dots3_note": _INDEXER,
    "ernie4_5_vl_moe": "text and images have experts of their own in its decoder layers, so a token has no one cost",
    "evolla": "it looks at proteins, not at images",
    "florence2": _ENCODER,
    "fuyu": "one linear layer makes queries, keys and values in its decoder layers, and foveate takes them one by one",
    "gemma3n": "it sees through a convolutional network, which has no blocks of tokens to act in, and its decoder layers "
    "work on several copies of every token",
    "git": "visual tokens stand in front of the prompt without placeholders in it",
    "glm5_next": _COPIES,
    "granite4_vision": "features of several blocks come in before several layers of its language model, so where image and "
    "text meet visual tokens are zeros",
    "hy_v4_vl": _COPIES,
    "idefics": _CROSS,
    "inkling2": _NEIGHBOURS,
    "inkling2_loop": _NEIGHBOURS,
    "inkling_mm_model": _NEIGHBOURS,
    "instructblip": _HANDS_ON,
    "instructblipvideo": _HANDS_ON,
    "kosmos-2": _BY_MASK,
    "kosmos-2.5": _BY_MASK,
    "llama4": "stock code of transformers 5.24 fails in every call, after the last layer",
    "minimax_m3_vl": _INDEXER,
    "mistral4": "it has no vision part of its own: it is the language model in a `mistral3`",
    "mistral_large4": _INDEXER,
    "mllama": _CROSS,
    "nemotron_h_omni": "a layer of its language model is a state, experts or attention alone, and foveate knows layers with "
    "attention and an FFN",
    "pi0": "it drives a robot: a diffusion model reads what the language model makes of the image",
    "pix2struct": _ENCODER,
    "pp_formulanet": _ENCODER,
    "qwen2_5_omni": _WHOLE,
    "qwen3_omni_moe": _WHOLE,
    "qwen4_exp": _INDEXER,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "unlimited_ocr": "its cache keeps the prompt whole and lets only what is generated slide, in entries of its own kind",
    "vision-encoder-decoder": _ENCODER,
}
