"""A pass of the language model over the text of a prompt, without its images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.ops.segments import padded_index, to_padded
from foveate.runtime.context import Context, DecoderPass
from foveate.runtime.signals.text import Text


def text_alone(model: Any, context: Context, call: DecoderPass) -> Tensor:
    """``(M, C)`` last hidden states of the text tokens of a forward, each sample's as if it were a prompt; once per forward."""
    return call.memo.once("alone", (), lambda: _run(model, context, call))


def _run(model: Any, context: Context, call: DecoderPass) -> Tensor:
    assert call.complete is not None
    assert call.samples is not None
    assert call.embeds is not None
    text = Text(call.complete, call.samples, call.present, lambda places: places)
    counts, device = text.counts, call.embeds.device
    x = to_padded(text.packed(call.embeds), counts)
    if x.numel() == 0:
        return x.flatten(0, 1)
    places = torch.arange(x.shape[1], device=device).expand(len(x), -1)
    mask = places < torch.tensor(counts).to(device, non_blocking=True)[:, None]
    context.decoder = None  # no site of ours acts there
    context.aside = True
    try:
        with torch.no_grad():
            out = model(inputs_embeds=x, attention_mask=mask.long(), position_ids=places, use_cache=False)
    finally:
        context.decoder, context.aside = call, False
    call.trace.asides.append((x.shape[0], x.shape[1]))
    states: Tensor = out[0]
    return states.flatten(0, 1)[padded_index(counts, device)]
