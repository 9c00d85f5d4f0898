"""Attention kernels that a model can be asked to use, and why some cannot be had here."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import import_utils

#: What all others are compared with: plain matrix products and a softmax.
PLAIN = "eager"


@dataclass(frozen=True)
class Kernel:
    """A kernel.

    Attributes:
        name: as results call it.
        attn: as transformers calls it.
        backend: of torch's `scaled_dot_product_attention`, the only one that it may use; None: whichever it wants.
        needs: function of transformers that says whether its package is installed; "": it needs none.
        only_gpu: it cannot run on a CPU, or not in any time worth waiting for.
    """

    name: str
    attn: str
    backend: SDPBackend | None = None
    needs: str = ""
    only_gpu: bool = False

    def why_not(self, model: Any) -> str:
        """Why it cannot be had here, for this model; "" where it can."""
        if self.only_gpu and model.device.type != "cuda":
            return "not run: it needs a GPU"
        if self.needs and not getattr(import_utils, self.needs, lambda: False)():
            return "not run: its package is not installed"
        if self.attn == "flex_attention" and not model._supports_flex_attn:
            return "not run: stock code of this family has no flex attention"
        return ""

    def forced(self) -> AbstractContextManager[Any]:
        """A block in which torch's attention uses its backend, or raises an error."""
        return nullcontext() if self.backend is None else sdpa_kernel(self.backend)


#: Flex is the last one: it is compiled for many shapes, which takes the longest.
KERNELS = (
    Kernel("sdpa, flash backend", "sdpa", SDPBackend.FLASH_ATTENTION),
    Kernel("sdpa", "sdpa"),
    Kernel("flash_attention_2", "flash_attention_2", needs="is_flash_attn_2_available", only_gpu=True),
    Kernel("flash_attention_3", "flash_attention_3", needs="is_flash_attn_3_available", only_gpu=True),
    Kernel("flex_attention", "flex_attention", only_gpu=True),
)


def fastest(device: torch.device) -> str:
    """The implementation that times are measured with."""
    found = getattr(import_utils, "is_flash_attn_2_available", lambda: False)()
    return "flash_attention_2" if found and device.type == "cuda" else "sdpa"
