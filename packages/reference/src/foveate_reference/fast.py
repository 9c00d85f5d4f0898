"""A fast forward pass over a reference model's parameters, for training and for masks that differ by layer.

The stock forward handles one prompt per sequence and images of any size. Training asks many questions about
the same images, so one sequence holds the images once and all questions after them; each question sees the
images and itself, at the position it would have alone. What does not depend on the data is made once for a
shape and kept. The results equal the stock forward's (tested).

Sequence layout, with ``Q`` questions of four tokens::

    <|vision_start|>  visual tokens  <|vision_end|>  ... more images ...
    question 0 ... question Q-1  answer of question 0

The last token teaches the model to end its turn after an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

from .model import PATCH, TOKEN_ID, VISION_END, VISION_START, Model
from .vocabulary import CELL, SIZE

QUESTION_LENGTH = 4
_WINDOW = SIZE // 2 // CELL  # side of an attention window of Qwen2.5-VL in visual tokens
_POINTER_HEADS = 2


@dataclass(frozen=True)
class Layout:
    """The visual part of a sequence: `images` images of `rows` x `columns` visual tokens.

    For LLaVA, whose images have one size, a tile of a larger image counts as an image.
    """

    images: int
    rows: int
    columns: int

    @property
    def visual(self) -> int:
        """Visual tokens of all images."""
        return self.images * self.rows * self.columns

    @property
    def text(self) -> int:
        """Position in the sequence where the first question starts."""
        return self.visual + 2 * self.images

    @property
    def places(self) -> Tensor:
        """Where in the sequence the visual tokens are, int64 (visual,)."""
        return torch.arange(self.text).view(self.images, -1)[:, 1:-1].flatten()


class FastForward:
    """A reference model on batches of one image shape and packed questions.

    Parameters
    ----------
    model : Qwen2_5_VLForConditionalGeneration or LlavaForConditionalGeneration
        A model with a configuration of `make_config`; its parameters are used, not copied, and stay where
        they are: what is kept for a shape is made on their device.
    """

    def __init__(self, model: Model) -> None:
        self.tower: _QwenTower | _ClipTower
        if isinstance(model, LlavaForConditionalGeneration):
            self.tower = _ClipTower(model)
        else:
            self.tower = _QwenTower(model)
        self.decoder = model.model.language_model
        self.device = self.decoder.embed_tokens.weight.device
        self._fixed: dict[tuple[Layout, int], tuple[Tensor, tuple[Tensor, Tensor]]] = {}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Layout for images of this shape, (B, n, H, W, 3) px."""
        return self.tower.layout(shape)

    def arrange(self, cells: Tensor) -> Tensor:
        """Data (..., n, H // 16, W // 16) of the images' cells in the order of visual tokens, (..., visual)."""
        return self.tower.arrange(cells)

    def see(self, images: Tensor) -> Tensor:
        """Visual tokens (B, visual, hidden), as they enter the decoder, of uint8 images (B, n, H, W, 3)."""
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same, and the CLS token of each tile, (B, tiles, tower width), if the tower has one."""
        visual, summary = self.tower.see(images)
        visual = visual.view(len(images), -1, self.decoder.config.hidden_size)
        return visual, summary if summary is None else summary.unflatten(0, (len(images), -1))

    def mask(self, layout: Layout, questions: int) -> Tensor:
        """May row attend to column? (tokens, tokens), causal, and only to images and the own question."""
        return self._shape(layout, questions)[0]

    def _shape(self, layout: Layout, questions: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Mask and rotary embedding of a shape, made when it is first met."""
        if (layout, questions) not in self._fixed:
            block = torch.arange(1, questions + 1).repeat_interleave(QUESTION_LENGTH)
            block = torch.cat((torch.zeros(layout.text, dtype=torch.long), block, torch.ones(1, dtype=torch.long)))
            causal = torch.ones(len(block), len(block)).tril().bool()
            mask = causal & ((block[:, None] == block) | (block == 0))
            cos, sin = self._rope(layout, questions)
            self._fixed[layout, questions] = mask.to(self.device), (cos.to(self.device), sin.to(self.device))
        return self._fixed[layout, questions]

    def _rope(self, layout: Layout, questions: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (tokens, head width)."""
        positions = torch.tensor(self.positions(layout, questions)).T
        angles = positions[..., None].float() * self.decoder.rotary_emb.inv_freq.cpu()
        sections = self.decoder.config.rope_parameters.get("mrope_section", [angles.shape[-1]])
        parts = angles.split(sections, -1)  # each (3, tokens, a part of half a head)
        half = torch.cat([part[axis] for axis, part in enumerate(parts)], -1)
        half = torch.cat((half, half), -1)
        return half.cos(), half.sin()

    def positions(self, layout: Layout, questions: int) -> list[tuple[int, int, int]]:
        """Position (time, row, column) of each token; all questions start at the same one."""
        start = 0
        found: list[tuple[int, int, int]] = []
        for _ in range(layout.images):
            image, end = self.tower.positions(layout, start + 1)
            found += [(start,) * 3, *image, (end,) * 3]
            start = end + 1
        question = [(start + i,) * 3 for i in range(QUESTION_LENGTH)]
        return [*found, *question * questions, (start + QUESTION_LENGTH,) * 3]

    def leave_at(self, layer: int, layout: Layout, questions: int) -> list[Tensor]:
        """Masks per layer under which text cannot attend to visual tokens from decoder layer `layer` on."""
        mask = self.mask(layout, questions)
        gone = mask.clone()
        rows = torch.ones(len(mask), dtype=torch.bool, device=self.device)
        columns = layout.places.to(self.device)
        rows[columns] = False
        gone[rows[:, None] & ~rows] = False
        return [mask if number < layer else gone for number in range(len(self.decoder.layers))]

    def keep(self, kept: Tensor, layout: Layout, questions: int) -> list[Tensor]:
        """Masks per layer as if only the visual tokens `kept` (n,) had entered, at their own positions."""
        mask = self.mask(layout, questions).clone()
        dropped = torch.ones(layout.visual, dtype=torch.bool)
        dropped[kept] = False
        mask[:, layout.places[dropped].to(self.device)] = False
        return [mask] * len(self.decoder.layers)

    def read(
        self,
        visual: Tensor,
        questions: Tensor,
        answers: Tensor,
        layout: Layout,
        *,
        masks: list[Tensor] | None = None,
        pointers: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answer the questions.

        Parameters
        ----------
        visual : float (B, visual, hidden)
            What `see` returns.
        questions : int64 (B, Q, 4)
            Token ids.
        answers : int64 (B,)
            Token id of the answer of each sample's question 0.
        layout : Layout
            The layout of the images that were seen.
        masks : list of bool (tokens, tokens), optional
            One per decoder layer, see `leave_at` and `keep`.
        pointers : dict from layer to bool (B, Q, 2, visual), optional
            Visual tokens that the last token of a question should attend to in two heads of a layer.

        Returns
        -------
        logits : float (B, Q, vocabulary)
            For the token after each question.
        end_logits : float (B, vocabulary)
            For the token after the answer of question 0.
        pointer_loss : float ()
            Mean negative log of the attention on the tokens asked for; zero without `pointers`.
        """
        decoder = self.decoder
        mask, (cos, sin) = self._shape(layout, questions.shape[1])
        specials = torch.tensor([TOKEN_ID[VISION_START], TOKEN_ID[VISION_END]], device=self.device)
        start, end = decoder.embed_tokens(specials)
        per_image = visual.unflatten(1, (layout.images, -1))
        edge = (*per_image.shape[:2], 1, -1)
        framed = torch.cat((start.expand(edge), per_image, end.expand(edge)), 2).flatten(1, 2)
        text = decoder.embed_tokens(torch.cat((questions.flatten(1), answers[:, None]), 1))
        x = torch.cat((framed, text), 1)
        # What is read off: the last token of each question, and the answer.
        asking = torch.arange(layout.text + QUESTION_LENGTH - 1, x.shape[1], QUESTION_LENGTH, device=self.device)
        ends = torch.cat((asking, torch.tensor([x.shape[1] - 1], device=self.device)))
        losses, count = x.new_zeros(()), x.new_zeros(())
        for number, layer in enumerate(decoder.layers):
            attention, normed = layer.self_attn, _norm(layer.input_layernorm, x)
            q, k, v = (
                project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            if pointers is not None and number in pointers:
                loss, asked = self._pointer_loss(q[:, :, asking], k[:, :, : layout.text], pointers[number], layout)
                losses, count = losses + loss, count + asked
            here = mask if masks is None else masks[number]
            if number < len(decoder.layers) - 1:
                # Images come first and cannot see the text.
                images, text = slice(layout.text), slice(layout.text, None)
                attended = torch.cat(
                    (
                        _attend(q[:, :, images], k[:, :, images], v[:, :, images], here[images, images]),
                        _attend(q[:, :, text], k, v, here[text]),
                    ),
                    2,
                )
            else:
                attended, x = _attend(q[:, :, ends], k, v, here[ends]), x[:, ends]
            x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(_norm(layer.post_attention_layernorm, x))
        out = _norm(decoder.norm, x) @ decoder.embed_tokens.weight.T
        return out[:, :-1], out[:, -1], losses / count.clamp(min=1)

    def _pointer_loss(self, q: Tensor, k: Tensor, target: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Sum over the questions that ask for visual tokens, and how many do.

        Queries `q` (B, heads, Q, width) of the last tokens of the questions, keys `k` (B, heads, tokens,
        width) of the images, and `target` (B, Q, 2, visual), see `read`.
        """
        heads = torch.arange(_POINTER_HEADS, device=self.device) // (q.shape[1] // k.shape[1])
        seen = k.unflatten(2, (layout.images, -1))[:, heads, :, 1:-1].flatten(2, 3)
        scores = q[:, :_POINTER_HEADS] @ seen.transpose(2, 3) * q.shape[-1] ** -0.5
        target = target.transpose(1, 2)  # (B, heads, Q, visual)
        asked = target.any(-1)
        hit = scores.log_softmax(-1).masked_fill(~target, -1e9).logsumexp(-1)
        return -hit[asked].sum(), asked.sum()


class _QwenTower:
    """The vision tower of Qwen2.5-VL, on images whose sides are multiples of 80 px."""

    summary_width: int | None = None

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        self.tower = model.model.visual
        self._ropes: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return Layout(shape[1], shape[2] // CELL, shape[3] // CELL)

    def arrange(self, cells: Tensor) -> Tensor:
        return cells.flatten(-3)

    def positions(self, layout: Layout, start: int) -> tuple[list[tuple[int, int, int]], int]:
        """Positions (time, row, column) of the visual tokens of an image, and the first position after it."""
        found = [(start, start + row, start + column) for row in range(layout.rows) for column in range(layout.columns)]
        return found, start + max(layout.rows, layout.columns)

    def _rope(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (patches, head width), by window, then by merge group; sides in windows."""
        if (rows, columns) not in self._ropes:
            frequencies = self.tower.rotary_pos_emb.inv_freq
            sides = (torch.arange(2 * _WINDOW * side, device=frequencies.device) for side in (rows, columns))
            grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)
            grid = grid.view(rows, _WINDOW, 2, columns, _WINDOW, 2, 2).permute(0, 3, 1, 4, 2, 5, 6).reshape(-1, 2)
            angles = (grid[..., None].float() * frequencies).flatten(1)
            angles = torch.cat((angles, angles), -1)
            self._ropes[rows, columns] = angles.cos(), angles.sin()
        return self._ropes[rows, columns]

    def see(self, images: Tensor) -> tuple[Tensor, None]:
        tower, layout = self.tower, self.layout(images.shape)
        rows, columns = layout.rows // _WINDOW, layout.columns // _WINDOW
        pixels = images.flatten(0, 1).float() / 127.5 - 1
        batch = len(pixels)
        pixels = pixels.view(batch, rows, _WINDOW, 2, PATCH, columns, _WINDOW, 2, PATCH, 3)
        patches = pixels.permute(0, 1, 5, 2, 6, 3, 7, 9, 4, 8).reshape(batch, -1, 3 * PATCH**2)
        # An image is a video of two equal frames: summing the kernel over time saves half of the product.
        kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
        x = F.linear(patches, kernel)
        cos, sin = self._rope(rows, columns)
        heads = tower.config.num_heads
        for number, block in enumerate(tower.blocks):
            normed = _norm(block.norm1, x)
            q, k, v = block.attn.qkv(normed).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            if number not in tower.config.fullatt_block_indexes:
                q, k, v = (t.unflatten(2, (rows * columns, -1)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
            attended = _attend(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + block.attn.proj(attended)
            x = x + block.mlp(_norm(block.norm2, x))
        merged: Tensor = tower.merger(x).view(batch, rows, columns, _WINDOW, _WINDOW, -1)
        return merged.transpose(2, 3).flatten(1, 4), None


class _ClipTower:
    """The vision tower and projector of LLaVA, on tiles of 160 x 160 px."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self.tower: Any = model.model.vision_tower
        self.summary_width: int | None = self.tower.config.hidden_size
        self.projector: nn.Module = model.model.multi_modal_projector
        # State -1 is what leaves the last block, -2 what enters it.
        layer: Any = model.config.vision_feature_layer
        self.blocks = self.tower.encoder.layers[: len(self.tower.encoder.layers) + 1 + layer]

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return Layout(shape[1] * (shape[2] // SIZE) * (shape[3] // SIZE), SIZE // CELL, SIZE // CELL)

    def arrange(self, cells: Tensor) -> Tensor:
        side = SIZE // CELL
        tiled = cells.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))  # (..., n, rows, side, columns, side)
        found: Tensor = tiled.transpose(-3, -2).flatten(-5)
        return found

    def positions(self, layout: Layout, start: int) -> tuple[list[tuple[int, int, int]], int]:
        """Positions, thrice the same, of the visual tokens of an image, and the first position after it."""
        end = start + layout.rows * layout.columns
        return [(position,) * 3 for position in range(start, end)], end

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tower, side = self.tower, SIZE // CELL
        _, _, height, width, _ = images.shape
        pixels = images.flatten(0, 1).float() / 127.5 - 1
        pixels = pixels.view(-1, height // SIZE, side, CELL, width // SIZE, side, CELL, 3)
        patches = pixels.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, side * side, 3 * CELL * CELL)
        embedded = F.linear(patches, tower.embeddings.patch_embedding.weight.flatten(1))
        first = tower.embeddings.class_embedding.expand(len(embedded), 1, -1)
        x = tower.pre_layrnorm(torch.cat((first, embedded), 1) + tower.embeddings.position_embedding.weight)
        heads = tower.config.num_attention_heads
        for block in self.blocks:
            attention, normed = block.self_attn, block.layer_norm1(x)
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            q, k, v = (project(normed).unflatten(-1, (heads, -1)).transpose(1, 2) for project in projections)
            attended = _attend(q, k, v)
            x = x + attention.out_proj(attended.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.layer_norm2(x))
        return self.projector(x[:, 1:]), x[:, 0]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` (..., tokens, width)."""
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), -1) * sin.to(x.dtype)


def _norm(norm: Any, x: Tensor) -> Tensor:
    """What a module for RMS normalisation does, in fewer passes over the data."""
    normed: Tensor = F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    return normed


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of queries (B, heads, rows, width) to keys and values (B, fewer heads, columns, width).

    On a CPU, for hundreds of tokens, matrix products are quicker than the fused kernel, above all backwards.
    """
    batch, heads, rows, width = q.shape
    groups, columns = k.shape[1:3]
    scores = (q * width**-0.5).reshape(batch * groups, -1, width) @ k.reshape(-1, columns, width).transpose(1, 2)
    if mask is not None:
        scores = scores.view(-1, rows, columns) + torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    attention = scores.softmax(-1).view(batch * groups, -1, columns)
    attended: Tensor = attention @ v.reshape(-1, columns, width)
    return attended.view(batch, heads, rows, width)
