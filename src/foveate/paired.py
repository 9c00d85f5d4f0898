"""Text encoders that share a space with a vision tower, as CLIP's and SigLIP's do: how much a patch says of a text.

Such a model is read from a folder once, without its own tower, as the vision-language model has that one. It is never trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from foveate.errors import ConfigError, first_line


class Paired:
    """A text encoder, and what brings the patches of its tower into the same space.

    Args:
        folder: of a model with `get_text_features` (CLIP, SigLIP), and of its tokenizer.
        device, dtype: where and in which it runs.
    """

    def __init__(self, folder: str, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoModel, AutoTokenizer

        model: Any = AutoModel.from_pretrained(folder)
        model.vision_model.encoder = model.vision_model.embeddings = None  # the tower, which is here already
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def _parts(self, text: str) -> dict[str, Tensor]:
        """Token ids ``(M, L)`` of a text, and their mask: as many parts of the encoder's length as it takes."""
        most = self.model.config.text_config.max_position_embeddings
        given = self.tokenizer(
            text,
            max_length=most,
            padding="max_length",
            padding_side="right",
            truncation=True,
            return_overflowing_tokens=True,
            return_tensors="pt",
        )
        own = ("input_ids", "attention_mask")
        return {name: given[name].view(-1, most).to(self.model.device) for name in own if name in given}

    @torch.no_grad()
    def directions(self, texts: Sequence[str]) -> Tensor:
        """Return the mean direction of the parts of each text, ``(B, D)`` fp32; zeros of one without a word."""
        found = []
        for text in texts:
            parts = self.model.get_text_features(**self._parts(text or "."))
            parts = parts if isinstance(parts, Tensor) else parts.pooler_output
            found.append(normalize(parts.float(), dim=-1).mean(0) * bool(text))
        return torch.stack(found)

    @torch.no_grad()
    def likeness(self, states: Tensor, directions: Tensor) -> Tensor:
        """Return the mean cosine ``(N,)`` of the patches of each token with the parts of its text.

        Args:
            states: ``(N, u * C)`` what the tower has put out, ``u`` patches of a token side by side.
            directions: ``(N, D)`` of the text of each.
        """
        vision = self.model.vision_model
        x = vision.post_layernorm(states.to(self.model.dtype).view(len(states), -1, self.width))
        n = x.shape[1]
        if hasattr(self.model, "visual_projection"):
            x = self.model.visual_projection(x)
        else:  # a head that pools all patches: each patch alone
            x = vision.head(x.flatten(0, 1)[:, None]).view(len(states), n, -1)
        return (normalize(x.float(), dim=-1).mean(1) * directions).sum(-1)

    @property
    def width(self) -> int:
        """Channels of a patch."""
        return int(self.model.config.vision_config.hidden_size)

    def flops(self, texts: Sequence[str], rows: int) -> int:
        """Count floating-point operations of the matrix products for these texts and ``rows`` patches."""
        shapes = [self._parts(text or ".")["input_ids"].shape for text in texts]
        encoder, config = self.model.text_model.encoder, self.model.config.text_config
        tokens, parts = sum(m * length for m, length in shapes), sum(m for m, _ in shapes)
        pairs = sum(m * length * length for m, length in shapes) * config.num_hidden_layers * config.hidden_size
        pooled = getattr(self.model, "text_projection", None) or self.model.text_model.head
        seen = getattr(self.model, "visual_projection", None) or self.model.vision_model.head
        ours = 4 * self.width**2 + 2 * self.width if hasattr(seen, "attention") else 0  # one query, one key
        linear = sum(each.weight.numel() for each in seen.modules() if type(each) is nn.Linear)
        total: int = 2 * (tokens * _weights(encoder) + 2 * pairs + parts * _weights(pooled) + rows * (linear + ours))
        return total


def _weights(module: nn.Module) -> int:
    return sum(each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear))


@lru_cache(maxsize=2)
def paired(folder: str, device: torch.device, dtype: torch.dtype) -> Paired:
    """Return the encoder of a folder, which stays in memory for the calls that follow."""
    return Paired(folder, device, dtype)


@lru_cache(maxsize=2)
def tokenizer(source: str) -> Any:
    """Return the tokenizer of a vision-language model, by its folder or name."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def check_folder(option: str, folder: str) -> None:
    """Raise `ConfigError` unless there is such a folder; ``option`` is what the user calls it."""
    if not Path(folder).is_dir():
        raise ConfigError(f"{option}={folder!r} is no folder of a model: give that of CLIP or SigLIP")


def check(option: str, folder: str, width: int) -> None:
    """Raise `ConfigError` unless a folder has a text encoder for a tower whose patches have ``width`` channels; 0: any.

    Args:
        option: what the user calls it.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option}={folder!r} is no folder of a model: {first_line(error)}") from None
    kind = MODEL_MAPPING.get(type(config), None)
    if not hasattr(kind, "get_text_features"):
        raise ConfigError(
            f"{option}={folder!r} is a {config.model_type!r}, which has no text tower beside a vision tower: give a folder of "
            "CLIP or SigLIP"
        )
    own = int(config.vision_config.hidden_size)
    if width and own != width:
        raise ConfigError(
            f"{option}={folder!r} reads patches of {own} channels, and the tower of this model makes {width}: give the folder "
            "of the model that this tower is from"
        )
