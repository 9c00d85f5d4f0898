"""A fast forward pass over the reference model's parameters, for training and for masks that differ by layer.

The stock forward handles one prompt per sequence and images of any size. Training asks up to 24 questions
about each image, so one sequence holds the image once and all questions after it; each question sees the
image and itself, at the position it would have alone. With fixed shapes everything that does not depend on
the data is made once. The results equal the stock forward's (tested).

Sequence layout, with ``Q`` questions of four tokens::

    <|vision_start|>  100 visual tokens  <|vision_end|>  question 0 ... question Q-1  answer of question 0

The last token teaches the model to end its turn after an answer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from .model import PATCH, TOKEN_ID, VISION_END, VISION_START
from .scenes import GRID, SIZE

VISUAL = GRID * GRID
"""Visual tokens of an image."""
QUESTION_LENGTH = 4
_PATCHES = SIZE // PATCH
_WINDOW = GRID // 2  # side of an attention window in visual tokens
_TEXT = VISUAL + 2  # where the first question starts
_POINTER_HEADS = 2


class FastForward:
    """The reference model on 160 px images and packed questions.

    Parameters
    ----------
    model : Qwen2_5_VLForConditionalGeneration
        A model with the configuration of `make_config`; its parameters are used, not copied.
    questions : int
        Questions per image, ``Q``.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, questions: int) -> None:
        self.tower = model.model.visual
        self.decoder = model.model.language_model
        self.questions = questions
        self.tower_rope = self._tower_rope()
        self.decoder_rope = self._decoder_rope()
        self.mask = self._mask()
        self.specials = torch.tensor([TOKEN_ID[VISION_START], TOKEN_ID[VISION_END]])

    def _tower_rope(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine (400, head width) of the patches, by window, then by merge group."""
        side = torch.arange(_PATCHES)
        grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
        grid = grid.view(2, _WINDOW, 2, 2, _WINDOW, 2, 2).permute(0, 3, 1, 4, 2, 5, 6).reshape(-1, 2)
        angles = (grid[..., None].float() * self.tower.rotary_pos_emb.inv_freq).flatten(1)
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()

    def _decoder_rope(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine (tokens, head width); all questions start at the same position."""
        image = [[1, 1 + row, 1 + column] for row in range(GRID) for column in range(GRID)]
        after = GRID + 1
        question = [[after + 1 + i] * 3 for i in range(QUESTION_LENGTH)]
        answer = [after + 1 + QUESTION_LENGTH] * 3
        positions = torch.tensor([[0] * 3, *image, [after] * 3, *question * self.questions, answer])
        angles = positions.T[..., None].float() * self.decoder.rotary_emb.inv_freq  # (3, tokens, half a head)
        sections = angles.split(self.decoder.config.rope_parameters["mrope_section"], -1)
        angles = torch.cat([section[axis] for axis, section in enumerate(sections)], -1)
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()

    def _mask(self) -> Tensor:
        """May row attend to column? (tokens, tokens), causal, and only to the image and the own question."""
        block = torch.arange(1, self.questions + 1).repeat_interleave(QUESTION_LENGTH)
        block = torch.cat((torch.zeros(_TEXT, dtype=torch.long), block, torch.ones(1, dtype=torch.long)))
        causal = torch.ones(len(block), len(block)).tril().bool()
        return causal & ((block[:, None] == block) | (block == 0))

    def leave_at(self, layer: int) -> list[Tensor]:
        """Masks per layer under which text cannot attend to visual tokens from decoder layer `layer` on."""
        gone = self.mask.clone()
        gone[_TEXT - 1 :, 1 : 1 + VISUAL] = False
        return [self.mask if number < layer else gone for number in range(len(self.decoder.layers))]

    def keep(self, kept: Tensor) -> list[Tensor]:
        """Masks per layer as if only the visual tokens `kept` (n,) had entered, at their own positions."""
        mask = self.mask.clone()
        dropped = torch.ones(VISUAL, dtype=torch.bool)
        dropped[kept] = False
        mask[:, 1 : 1 + VISUAL] &= ~dropped
        return [mask] * len(self.decoder.layers)

    def see(self, images: Tensor) -> Tensor:
        """Visual tokens (B, 100, hidden) of uint8 images (B, 160, 160, 3)."""
        batch, tower = len(images), self.tower
        pixels = images.float() / 127.5 - 1
        pixels = pixels.view(batch, 2, _WINDOW, 2, PATCH, 2, _WINDOW, 2, PATCH, 3)
        patches = pixels.permute(0, 1, 5, 2, 6, 3, 7, 9, 4, 8).reshape(batch, _PATCHES**2, 3 * PATCH**2)
        # An image is a video of two equal frames: summing the kernel over time saves half of the product.
        kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
        x = F.linear(patches, kernel)
        heads = tower.config.num_heads
        for number, block in enumerate(tower.blocks):
            q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = _rotate(q, *self.tower_rope), _rotate(k, *self.tower_rope)
            if number not in tower.config.fullatt_block_indexes:
                q, k, v = (t.unflatten(2, (4, -1)) for t in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, v).reshape(batch, heads, _PATCHES**2, -1)
            x = x + block.attn.proj(attended.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        merged: Tensor = tower.merger(x).view(batch, 2, 2, _WINDOW, _WINDOW, -1)
        return merged.transpose(2, 3).reshape(batch, VISUAL, -1)

    def read(
        self,
        visual: Tensor,
        questions: Tensor,
        answers: Tensor,
        *,
        masks: list[Tensor] | None = None,
        pointers: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answer the questions.

        Parameters
        ----------
        visual : float (B, 100, hidden)
            What `see` returns.
        questions : int64 (B, Q, 4)
            Token ids.
        answers : int64 (B,)
            Token id of the answer of each image's question 0.
        masks : list of bool (tokens, tokens), optional
            One per decoder layer, see `leave_at` and `keep`.
        pointers : dict from layer to bool (B, Q, 2, 100), optional
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
        batch, decoder = len(visual), self.decoder
        config = decoder.config
        start, end = decoder.embed_tokens(self.specials)
        text = decoder.embed_tokens(torch.cat((questions.flatten(1), answers[:, None]), 1))
        x = torch.cat((start.expand(batch, 1, -1), visual, end.expand(batch, 1, -1), text), 1)
        losses, count = torch.zeros(()), torch.zeros(())
        for number, layer in enumerate(decoder.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (
                project(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
                for project, heads in (
                    (attention.q_proj, config.num_attention_heads),
                    (attention.k_proj, config.num_key_value_heads),
                    (attention.v_proj, config.num_key_value_heads),
                )
            )
            q, k = _rotate(q, *self.decoder_rope), _rotate(k, *self.decoder_rope)
            shared = config.num_attention_heads // config.num_key_value_heads
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
            if pointers is not None and number in pointers:
                last = q[:, :_POINTER_HEADS, _TEXT + QUESTION_LENGTH - 1 : -1 : QUESTION_LENGTH]
                scores = last @ k[:, :_POINTER_HEADS, 1 : 1 + VISUAL].transpose(2, 3) * attention.scaling
                target = pointers[number].transpose(1, 2)  # (B, heads, Q, 100)
                hit = scores.log_softmax(-1).masked_fill(~target, -1e9).logsumexp(-1)
                asked = target.any(-1)
                losses, count = losses - hit[asked].sum(), count + asked.sum()
            mask = self.mask if masks is None else masks[number]
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        last = x[:, _TEXT:-1].unflatten(1, (self.questions, QUESTION_LENGTH))[:, :, -1]
        out = decoder.norm(torch.cat((last, x[:, -1:]), 1)) @ decoder.embed_tokens.weight.T
        return out[:, :-1], out[:, -1], losses / count.clamp(min=1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` (..., tokens, width)."""
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), -1) * sin.to(x.dtype)
