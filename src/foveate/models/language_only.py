"""Families of which foveate knows the language model alone: what makes their image features is nothing that it can act in."""

from __future__ import annotations

from dataclasses import replace

from foveate.models.family import NOWHERE, Decoder, Family, unseen

QUERIES = (
    "learned queries look at the image by cross-attention, so the language model's tokens stand for no place of it"
)
WORDS = "images become words of a codebook by a convolutional network, which has no blocks of tokens to act in"
SAM = "blocks of its vision tower work on grids of patches in windows, and convolutions of overlapping patches make its tokens"
PACKED = (
    "before its projector, stock code puts patches together that its vision tower has in one packed row for all images"
)
VIDEOS = {"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"}


def language_only(
    model_type: str,
    module: str,
    because: str,
    decoder: str | Decoder = "language_model",
    *,
    videos: bool = False,
) -> Family:
    """A family whose features come from ``module``; ``because`` says, in words, why no more is known of them.

    ``decoder`` is the language model, or where it is; ``videos``: it takes them, too.
    """
    decoder = Decoder(module=decoder) if isinstance(decoder, str) else decoder
    family = Family(model_type, unseen(module, because), decoder, frames=NOWHERE)
    return replace(family, modalities=VIDEOS) if videos else family
