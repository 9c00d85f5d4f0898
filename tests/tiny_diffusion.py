"""A tiny DiffusionGemma, whose processor is Gemma 4's. It answers in denoising steps, so what `contract` asks of words that are
generated one by one is asked of it in a file of its own."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from tiny_gemma import KINDS4, WINDOW
from tiny_shared import BLOCKS, LAYERS, PATCH, TOKEN_ID
from torch import Tensor

NAME = "diffusion_gemma"
CANVAS = 6  # tokens


def config(**text: Any) -> Any:
    """The config of the tiny model; ``text`` overrides fields of its language model."""
    from transformers import DiffusionGemmaConfig

    vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    vision |= dict(model_type="gemma4_vision", num_hidden_layers=BLOCKS, patch_size=PATCH, pooling_kernel_size=2)
    vision |= dict(position_embedding_size=64)
    usual = dict(vocab_size=len(TOKEN_ID), hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, head_dim=16)
    usual |= dict(num_attention_heads=4, num_key_value_heads=2, global_head_dim=32, max_position_embeddings=2048)
    usual |= dict(layer_types=[KINDS4[i % len(KINDS4)] for i in range(LAYERS)], sliding_window=WINDOW)
    usual |= dict(num_experts=4, top_k_experts=2, moe_intermediate_size=32, use_bidirectional_attention="vision")
    usual |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=TOKEN_ID["<pad>"])
    ids = dict(image_token_id=TOKEN_ID["<image>"], boi_token_id=TOKEN_ID["<img>"], eoi_token_id=TOKEN_ID["</img>"])
    return DiffusionGemmaConfig(text_config=usual | text, vision_config=vision, canvas_length=CANVAS, **ids)


def build(impl: str = "sdpa", **text: Any) -> Any:
    """A model with random weights that matter to the logits."""
    from transformers import DiffusionGemmaForBlockDiffusion

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = DiffusionGemmaForBlockDiffusion(config(**text)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.08 * torch.randn_like(parameter))
            model.get_input_embeddings().weight[TOKEN_ID["<pad>"]] = 0.0
    model.set_attn_implementation(impl)
    return model


def inputs(rows: list[list[Any]], **how: Any) -> dict[str, Tensor]:
    """Inputs of a batch, as `tiny.inputs` makes them for Gemma 4, with a canvas of words for each row."""
    batch = tiny.inputs("gemma4", rows, **how)
    chosen = range(len(rows)) if how.get("only") is None else [how["only"]]
    words = torch.stack([torch.arange(CANVAS) * 7 + 20 + 3 * row for row in chosen])
    return {**batch, "decoder_input_ids": words}
