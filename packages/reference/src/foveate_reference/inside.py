"""What goes on between the layers of a reference model: where its text looks, attention sinks, massive activations.

Of single questions, through the stock forward with eager attention. Everything is a mean over questions.

* *Attention* is that of the tokens after the image (the question), a mean over them and over heads.
* *Massive activations* (Sun et al., COLM 2024, arXiv 2402.17762) are the largest numbers of a layer's output, beside their
  median.
* *Visual sink tokens* (Kang et al., ICLR 2025, arXiv 2503.03321) are visual tokens that are large in the channels in which the
  first token is. There a token is one if such a channel is 20 times its root mean square, in models of 4,096 channels. In
  one of 576 every token may have such a channel, so here it must be half as large as the first token's, and a hundred
  times the median.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .data import Sample
from .model import Model, Processor

SINK_CHANNELS = 2
SINK_SHARE, SINK_RATIO = 0.5, 100


@dataclass
class _Caught:
    """Of one forward: attention (heads, T, T) and output (T, width) of each layer."""

    attention: list[Tensor] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def inside(model: Model, processor: Processor, samples: Sequence[Sample]) -> dict[str, Any]:
    """What is described above, layer by layer.

    Parameters
    ----------
    model, processor
        Of `foveate_reference.load`.
    samples : sequence of Sample
        Questions about one image, in the words of the model.
    """
    token, sums = int(model.config.image_token_id), list[dict[str, float]]()
    found: list[tuple[_Caught, Tensor, Tensor]] = []
    with _watched(model) as caught:
        for sample in samples:
            inputs: Any = processor.apply_chat_template(
                sample.messages[:1], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
            )
            caught.attention, caught.output = [], []
            model(**inputs.to(model.device), use_cache=False)
            about = torch.cat([torch.from_numpy(cells).flatten() for cells in sample.evidence]) > 0.5
            found.append((_Caught(caught.attention, caught.output), inputs["input_ids"][0] == token, about))
    channels = _sink_channels([each.output for each, _, _ in found])
    for each, visual, about in found:
        layers = [
            _of_layer(attention, output, visual, about, channels)
            for attention, output in zip(each.attention, each.output, strict=True)
        ]
        sums = layers if not sums else [{k: a[k] + b[k] for k in a} for a, b in zip(sums, layers, strict=True)]
    return {
        "questions": len(samples),
        "sink_channels": channels,
        "layers": [{name: value / len(samples) for name, value in layer.items()} for layer in sums],
    }


@contextmanager
def _watched(model: Model) -> Iterator[_Caught]:
    """What a forward puts into the object while the block runs."""
    caught, before = _Caught(), model.config._attn_implementation
    model.set_attn_implementation("eager")
    layers: Any = model.model.language_model.layers

    def catch(into: str, place: int | None) -> Callable[..., None]:
        def hook(_: Any, __: Any, out: Any) -> None:
            value = out if place is None or not isinstance(out, tuple) else out[place]
            getattr(caught, into).append(value[0].float())

        return hook

    hooks = [layer.self_attn.register_forward_hook(catch("attention", 1)) for layer in layers]
    hooks += [layer.register_forward_hook(catch("output", 0)) for layer in layers]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)


def _sink_channels(outputs: Sequence[list[Tensor]]) -> list[int]:
    """The channels in which the first token is largest, in the middle half of the layers."""
    layers = len(outputs[0])
    middle = [
        out[layer][0].abs() for out in outputs for layer in range(layers // 4, max(layers // 4 + 1, 3 * layers // 4))
    ]
    return sorted(torch.stack(middle).mean(0).topk(SINK_CHANNELS).indices.tolist())


def _of_layer(
    attention: Tensor, output: Tensor, visual: Tensor, about: Tensor, channels: list[int]
) -> dict[str, float]:
    """Numbers of one layer for one question; `visual` and `about` say which tokens, and which visual ones, are meant."""
    last = int(visual.nonzero()[-1])
    pays = attention[:, last + 1 :].mean((0, 1))
    size = output.abs()
    here = size[:, channels]
    sinks = ((here >= SINK_SHARE * here[0]) & (here >= SINK_RATIO * size.median())).any(-1)
    of_visual = pays[visual]
    return {
        "attention_first_token": float(pays[0]),
        "attention_visual": float(of_visual.sum()),
        "attention_asked": float(of_visual[about.to(of_visual.device)].sum()),
        "attention_visual_sinks": float(of_visual[sinks[visual]].sum()),
        "visual_sinks": float(sinks[visual].sum()),
        "largest": float(size.max()),
        "median": float(size.median()),
        "largest_over_median": float(size.max() / size.median()),
        "largest_is_of_first_token": float(size.amax(-1).argmax() == 0),
    }
