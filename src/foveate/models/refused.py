"""Families that were looked at and are not supported, and why."""

from __future__ import annotations

_CROSS = "it has no visual tokens in the language model: layers of cross-attention look at the image"
_ENCODER = (
    "it is an encoder and a decoder: what it writes looks at the image by cross-attention, not as tokens of a prompt"
)
QUERIES = (
    "learned queries look at the image by cross-attention, so the language model's tokens stand for no place of it"
)
_WORDS = "images become words of a codebook by a convolutional network, which has no blocks of tokens to act in"
_CONVOLUTIONS = "it sees through a network of timm with convolutions, which has no blocks of tokens to act in"
SAM = "blocks of its vision tower work on grids of patches in windows, and convolutions of overlapping patches make its tokens"
_NO_TOWER = "it has no vision tower: patches go straight to the language model"
_INDEXER = "its decoder layers choose what to attend to by indexers, which number every token in a cache of their own"
_LINES = "its projector takes one image at a time and puts the ends of lines between the tokens itself"
_CLASSES = "class tokens stand between the images in the one packed row that its vision tower has for all of them"
_PACKED = (
    "before its projector, stock code puts patches together that its vision tower has in one packed row for all images"
)
_WHOLE = "it is several models: compress its `thinker`, which sees"

REFUSED = {
    "apertus1p5": _WORDS,
    "blip": _CROSS,
    "blip-2": QUERIES,
    "chameleon": _WORDS,
    "deepseek_ocr2": SAM,
    "deepseek_vl_hybrid": "two vision towers look at every image, and their features are joined",
    "dots3_note": _INDEXER,
    "emu3": _WORDS,
    "ernie4_5_vl_moe": "text and images have experts of their own in its decoder layers, so a token has no one cost, and a "
    "resampler joins the tokens of every two frames of a video",
    "evolla": "it looks at proteins, not at images",
    "fast_vlm": _CONVOLUTIONS,
    "florence2": _ENCODER,
    "fuyu": _NO_TOWER,
    "gemma3n": "it sees through a convolutional network, which has no blocks of tokens to act in, and its decoder layers "
    "work on several copies of every token",
    "gemma4_unified": _NO_TOWER,
    "git": "visual tokens stand in front of the prompt without placeholders in it",
    "glm5_next": "its decoder layers work on several copies of every token, and " + _INDEXER.removeprefix("its "),
    "granite4_vision": QUERIES,
    "granite_docling": "the prompt decides how many tokens a tile has, and which of two connectors makes them",
    "hunyuan_vl": _LINES,
    "hy_v4_vl": _LINES,
    "idefics": _CROSS,
    "inkling2": _CLASSES,
    "inkling2_loop": _CLASSES,
    "inkling_mm_model": "its vision tower encodes every patch by itself, so it has no blocks of tokens to act in",
    "instructblip": QUERIES,
    "instructblipvideo": QUERIES,
    "kimi_k25": "its vision tower averages the frames of a video and puts patches together that stand in raster order in one "
    "row for all images",
    "kosmos-2": QUERIES,
    "kosmos-2.5": QUERIES,
    "lfm2_vl": "its projector is given the patches of all images side by side, with fillings in between that it drops itself",
    "lfm3_vl": "some blocks of its vision tower are convolutions over the whole grid of patches, which must have no holes",
    "llama4": "the class token of its vision tower stands behind the patches, and stock code of transformers 5.24 fails in "
    "every call with an image",
    "minimax_m3_vl": _INDEXER,
    "mistral4": "it has no vision part of its own: it is the language model in a `mistral3`",
    "mistral_large4": _INDEXER,
    "mllama": _CROSS,
    "molmo2": "a layer of attention pools patches out of the features of several blocks of its vision tower at once",
    "muse_glimmer": _PACKED,
    "muse_spark": _PACKED,
    "nemotron_h_omni": _PACKED,
    "perception_lm": "its vision tower is one of timm's, whose blocks have other names and calls in each of them",
    "pi0": "it drives a robot: a diffusion model reads what the language model makes of the image",
    "pix2struct": _ENCODER,
    "pp_formulanet": _ENCODER,
    "qwen2_5_omni": _WHOLE,
    "qwen3_omni_moe": _WHOLE,
    "qwen4_exp": _INDEXER,
    "step3p7": "convolutions of overlapping patches make its tokens, so no patch belongs to one token alone",
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "unlimited_ocr": SAM,
    "vision-encoder-decoder": _ENCODER,
}
