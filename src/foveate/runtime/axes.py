"""Position ids of text for decoder layers that stock code gives those of all axes.

Where a position has an axis for time, height and width, rotary embeddings are made of all of them before the first layer. What
a layer is given besides is read by flash kernels alone, which find in it where samples that are packed into one row begin. A
lone prompt with three axes looks to them like many such samples, so that what they compute is wrong in stock code, too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from foveate.models.family import Decoder
from foveate.runtime.hooks import Hooks
from foveate.runtime.recurrent import attention_of
from foveate.runtime.signals.kernel import is_flash


def count_text(model: nn.Module, layers: Sequence[nn.Module], spec: Decoder, hooks: Hooks) -> None:
    """Give layers with a flash kernel the first of four axes, which counts text, or no positions where there are three.

    It does nothing where a family does not say that its layers are given all axes.
    """
    now = threading.local()

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("position_ids")
        now.text = ids[0] if isinstance(ids, Tensor) and ids.dim() == 3 and ids.shape[0] == 4 else None

    def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = kwargs.get("position_ids")
        several = isinstance(ids, Tensor) and ids.dim() == 3
        return (args, {**kwargs, "position_ids": getattr(now, "text", None)}) if several else None

    own = [(layer, attention_of(layer, spec)) for layer in layers if spec.all_axes]
    flash = [layer for layer, attention in own if attention is not None and is_flash(attention)]
    if flash:
        hooks.pre(model, note)
    for layer in flash:
        hooks.pre(layer, give)
