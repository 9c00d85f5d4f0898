"""The vocabulary in which a family of models is described. Facts only; the runtime does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Grid = list[tuple[int, int, int]]  # one (frames, height, width) per image or video
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@dataclass(frozen=True)
class Tower:
    """The vision tower.

    Attributes:
        module: its path under the base model.
        blocks: path of the block list under the tower.
        attention, mid_norm, ffn_end: names inside a block: the attention module; the norm whose input is the residual
            stream between attention and FFN; the module whose output is the FFN branch.
        attention_norm: name inside a block of the norm between the residual stream and the attention.
        query, attention_end: names inside the attention module of the first and the last linear layer that a query goes
            through; both work row by row.
        fused: the ``query`` layer makes keys and values as well, in its output channels after those of the queries.
        layout: ``padded`` ``(images, tokens, C)`` or ``packed`` ``(tokens, C)`` with ``cu_seqlens``.
        leading: special tokens before the patches of each image (CLS), padded layout only.
        unit: patches that the output module joins to one token.
        output: path under the base model of the module after which rows are full length again (projector, merger).
        last_block: index of the last block that the language model's features depend on.
        grid: inputs of a tower call -> its images and videos, in tokens of the language model (merged units).
        order: inputs of a tower call -> ``(units,)`` raster index of each unit in the sequence that the blocks see, or
            None where that is raster order.
        resize: inputs of a tower call and a new grid -> new inputs with every image resized (pixels site).
        segments: grid and block -> rows of each attention segment of that block (frames, windows, whole images).
        block_args: token axis of every tensor argument of a block, by name; ``"seqlens"`` for cumulative lengths,
            ``"rotary"`` for a pair ``(cos, sin)`` of rows whose angles are linear in the patch's y and x, each axis with
            angles below pi a patch (towers with a patch merger only).
        kept_rows: output rows per image that stand for no patch (a CLS that the projector lets through).
    """

    module: str
    blocks: str
    attention: str
    mid_norm: str
    ffn_end: str
    layout: Literal["padded", "packed"]
    attention_norm: str
    query: str
    attention_end: str
    output: str
    unit: Callable[[Any], int]
    last_block: Callable[[Any], int]
    grid: Callable[[Any, Args, Kwargs], Grid]
    resize: Callable[[Any, Args, Kwargs, Grid], tuple[Args, Kwargs]]
    segments: Callable[[Any, Grid, int], list[int]]
    order: Callable[[Any, Args, Kwargs], Tensor | None] = lambda config, args, kwargs: None
    fused: bool = False
    leading: int = 0
    kept_rows: Callable[[Any], int] = lambda config: 0
    block_args: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoder:
    """The language model: a loop over layers and a final norm.

    Attributes:
        module: its path under the base model.
        layers, norm, rotary, attention: names under it (attention: under a layer).
        layer_args: token axis of every tensor argument of a layer, by name; ``"mask"`` for the attention mask. The batch
            axis is the one before it. (Rotary embeddings are ``(B, L, d)``, in M-RoPE models before 5.18 ``(3, B, L, d)``.)
    """

    module: str = "language_model"
    layers: str = "layers"
    norm: str = "norm"
    rotary: str = "rotary_emb"
    attention: str = "self_attn"
    layer_args: Mapping[str, int | str] = field(
        default_factory=lambda: {"attention_mask": "mask", "position_embeddings": -2, "position_ids": 1}
    )


@dataclass(frozen=True)
class Family:
    """A family of vision-language models.

    Attributes:
        model_type: ``config.model_type``.
        tower, decoder: see there.
        base: path, under the model with the LM head, of the module whose forward joins vision and text.
        modalities: pixel argument of the base model's forward -> name of the token id in the config, in the order in
            which stock code calls the tower.
    """

    model_type: str
    tower: Tower
    decoder: Decoder = Decoder()
    base: str = "model"
    modalities: Mapping[str, str] = field(default_factory=lambda: {"pixel_values": "image_token_id"})


def argument(args: Args, kwargs: Kwargs, position: int, name: str) -> Any:
    """An argument that stock code may pass by position or by name."""
    return kwargs[name] if name in kwargs else args[position]


def resize_images(images: Tensor, height: int, width: int) -> Tensor:
    """``(B, c, H, W)`` pixels to ``(B, c, height, width)``, antialiased bicubic, as image processors resize."""
    size = (height, width)
    resized = torch.nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return resized.to(images.dtype)
