"""What a visual token should say before the language model has learnt to look: the words for what is in its cell.

A connector whose outputs lie anywhere teaches the language model nothing at first. So it is trained alone, for some minutes
and without running the language model, until each visual token is near the sum of the embeddings of the words that say
what is there: its kind, its colour, what is written on it, its place, and the background.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from foveate_reference.batches import _TEXTS, GRID
from foveate_reference.drawing import KINDS
from foveate_reference.vocabulary import COLORS, TEXTURES

from .sentences import answer_in_english

_EDGES = ("top", "middle", "bottom"), ("left", "center", "right")


class WordTargets(nn.Module):
    """The embeddings of the words for each dense label, and the loss that pulls visual tokens to them.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    embeddings : float (vocabulary, width)
        Of the language model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, embeddings: Tensor) -> None:
        super().__init__()

        def table(words: list[str]) -> Tensor:
            """Mean embedding of each word's tokens; the first class of a label, nothing, is zero."""
            ids = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words]
            return torch.stack([embeddings[one].float().mean(0) for one in ids])

        nothing = torch.zeros(1, embeddings.shape[1])
        texts = table(list(_TEXTS))
        # In the order of `LABEL_SIZES`, but for the anchor's place.
        self.tables = nn.ParameterDict(
            {
                "kind": torch.cat((nothing, table(list(KINDS)))),
                "color": torch.cat((nothing, table(list(COLORS)))),
                "text": torch.cat((nothing, texts)),
                "link": torch.cat((nothing, texts)),
                "row": table(list(_EDGES[0])),
                "column": table(list(_EDGES[1])),
                "texture": table([answer_in_english(name) for name in TEXTURES]),
            }
        ).requires_grad_(False)
        self.scale = embeddings.float().std().item()

    def labels(self, cells: Tensor) -> dict[str, Tensor]:
        """The class of each word table, int64 (B, cells), -100 where a label makes no sense.

        `cells` are the dense labels (B, 8, cells) in the order of visual tokens.
        """
        kind, color, text, link, _, _, _, texture = cells.unbind(1)
        here = torch.arange(cells.shape[-1], device=cells.device) % (GRID * GRID)
        row, column = (here // GRID * 3 // GRID).expand_as(kind), (here % GRID * 3 // GRID).expand_as(kind)
        background = torch.where(kind > 0, -100, texture)
        return {
            "kind": kind,
            "color": color,
            "text": text,
            "link": link,
            "row": row,
            "column": column,
            "texture": background,
        }

    def forward(self, visual: Tensor, cells: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of visual tokens (B, cells, width), and the share of right words by label."""
        target, loss, right = torch.zeros_like(visual), visual.new_zeros(()), {}
        for name, label in self.labels(cells).items():
            words = self.tables[name]
            said = label >= (1 if name in ("kind", "color", "text", "link") else 0)
            target = target + words[label.clamp(min=0)] * (label >= 0)[..., None] * (0.5 if name == "link" else 1.0)
            if said.any():
                close = 16 * F.normalize(visual[said], dim=-1) @ F.normalize(words, dim=-1).T
                loss = loss + F.cross_entropy(close, label[said])
                right[name] = (close.argmax(-1) == label[said]).float().mean().item()
        return loss + ((visual - target) ** 2).mean() / self.scale**2, right
