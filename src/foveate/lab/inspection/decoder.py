"""What the notes of a call tell of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from foveate.lab.inspection.spies import Call, Notes
from foveate.lab.inspection.tower import Facts, is_attention, is_norm, lists
from foveate.models.family import Decoder

NAMED = Decoder().layer_args


def facts(notes: Notes, prefix: str, config: Any) -> Facts:
    """Facts of `Decoder` by field."""
    path, layers = lists(notes, encoding=False)
    if not layers:
        return {}
    language = layers[0].parent
    assert language is not None  # a layer is called by the language model
    whole = language.path
    found: Facts = {"module": whole.removeprefix(prefix), "layers": path.removeprefix(f"{whole}.")}
    after = [call for call in notes.inside(language) if call.start > layers[-1].end]
    if after:
        found["norm"] = after[-1].name
    rotary = [call for call in notes.inside(language) if "rotary" in call.kind.lower()]
    if rotary:
        found["rotary"] = rotary[0].name
        if any(isinstance(value, str) for value in rotary[0].given.values()):
            found["kinds"] = "layer_types"
    found |= _inside(notes, layers) | _arguments(layers[0], config) | _deepstack(language)
    if hasattr(config.get_text_config(), "output_router_logits"):
        found["complete"] = ("router_logits",)
    return found


def _inside(notes: Notes, layers: list[Call]) -> Facts:
    """Names in a layer with attention, and in one without."""
    layer = layers[0]
    calls = notes.inside(layer)
    attention = next(call for call in calls if is_attention(call))
    linear = [call for call in notes.inside(attention) if isinstance(call.module, nn.Linear)]
    before = [call for call in calls if call.start < attention.start and is_norm(call)]
    work = [
        call
        for call in calls
        if call.start > attention.start and not is_norm(call) and any(True for _ in call.module.parameters())
    ]
    found: Facts = {"attention": attention.name}
    if before:
        found["attention_norm"] = before[-1].name
    if work:
        found["ffn"] = work[0].name
    experts = [call.name for call in work[1:] if "experts" in call.kind.lower()]
    if experts:
        found["experts"] = experts[0]
    if len(linear) >= 4:
        found |= dict(zip(("query", "key", "value"), (call.name for call in linear))) | {
            "attention_end": linear[-1].name
        }
    if hasattr(attention.module, "is_kv_shared_layer"):
        found["shared"] = "is_kv_shared_layer"
    stateful = _recurrent(layer)
    if stateful:
        found |= {"recurrent": stateful, "recurrence": True}
    return found


def _recurrent(layer: Call) -> str:
    """Name of what layers have that stand between those with attention and have none."""
    from itertools import chain

    root = layer.path.rpartition(".")[0]
    holder = layer.parent
    assert holder is not None
    siblings: Any = holder.module.get_submodule(root.removeprefix(f"{holder.path}."))
    own = set(dict(layer.module.named_children()))
    others = chain.from_iterable(
        dict(each.named_children()) for each in siblings if set(dict(each.named_children())) != own
    )
    return next((name for name in others if name not in own and "attn" in name), "")


def _arguments(layer: Call, config: Any) -> Facts:
    """Arguments of a layer with an axis of tokens that not all decoders have."""
    hidden = layer.input
    length = hidden.shape[-2] if hidden is not None else -1
    more: dict[str, int | str] = {}
    for name, value in layer.given.items():
        if isinstance(value, Tensor) and value is not hidden and name not in NAMED and length in value.shape:
            more[name] = next(axis for axis in range(-1, -value.dim() - 1, -1) if value.shape[axis] == length)
    return {"layer_args": {**NAMED, **more}} if more else {}


def _deepstack(language: Call) -> Facts:
    """Names of the features that the loop adds between layers, and of the mask of the tokens that they are added to."""
    given: Mapping[str, Any] = language.given
    added = [
        name for name, value in given.items() if isinstance(value, list) and value and isinstance(value[0], Tensor)
    ]
    masks = [
        name
        for name, value in given.items()
        if isinstance(value, Tensor) and value.dtype.is_floating_point is False and "visual" in name
    ]
    return {"deepstack": (added[0], masks[0])} if added and masks else {}
