"""DiffusionGemma: a Gemma 4 that encodes a prompt, and a canvas beside it that writes the answer in denoising steps.

Both share their weights. What is compressed is the encoder, which fills the KV cache; the canvas reads that at every step. It
takes images only, and each of its layers has experts beside the FFN."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.models import gemma4
from foveate.models.family import Args, Decoder, Denoising, Kwargs, argument

STEPS = 48  # of stock code's generation, where the model's own says nothing else


def _steps(model: Any) -> int:
    """Denoising steps of each part of an answer; a config says nothing of them."""
    said = getattr(getattr(model, "generation_config", None), "max_denoising_steps", None)
    return int(said or STEPS)


def _around(canvas: Any, args: Args, kwargs: Kwargs) -> int:
    """Self-conditioning: an FFN, and after the first step the probabilities of all words times their embeddings."""
    rows = argument(args, kwargs, 0, "decoder_input_ids").numel()
    own, table = canvas.self_conditioning, canvas.embed_tokens.weight
    ffn = sum(layer.weight.numel() for layer in (own.gate_proj, own.up_proj, own.down_proj))
    return int(2 * rows * (ffn + (table.numel() if kwargs.get("self_conditioning_logits") is not None else 0)))


FAMILY = replace(
    gemma4.FAMILY,
    model_type="diffusion_gemma",
    base="model.encoder",
    modalities={"pixel_values": "image_token_id"},
    decoder=Decoder(kinds="layer_types", experts="experts", complete=("router_logits",)),
    denoising=Denoising(steps=_steps, canvas="model.decoder", around=_around),
)
