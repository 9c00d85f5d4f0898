"""What the notes of a call tell of the vision tower: its blocks, what is inside one, and which rows make a feature."""

from __future__ import annotations

import inspect
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModelError
from foveate.lab.inspection.spies import Call, Notes
from foveate.lab.inspection.trial import Trial, rows_of

Facts = dict[str, Any]
PASSIVE = ("Dropout", "Identity", "DropPath")


@dataclass(frozen=True)
class Vision:
    """A spied call of a tower.

    Attributes:
        notes, trial: the call, and what it was given.
        prefix: path of the base model with a dot, or "".
        path: path of the list of blocks under the model.
        blocks: one call of each block, in order.
        reads: for a feature, the rows of the last block that matter to it.
        last: index of the last block that features are made of.
    """

    notes: Notes
    trial: Trial
    prefix: str
    path: str
    blocks: list[Call]
    reads: int
    last: int

    @property
    def units(self) -> int:
        """Tokens of all images, if nothing rearranges them."""
        return sum(height * width for height, width in self.trial.sides) // self.reads

    @property
    def packed(self) -> bool:
        """Whether block 0 was given rows without an axis of images."""
        hidden = self.blocks[0].input
        return hidden is not None and hidden.dim() == 2

    def short(self, path: str) -> str:
        """A path as a family says it, under the base model."""
        return path.removeprefix(self.prefix)


def look(notes: Notes, trial: Trial, prefix: str) -> Vision:
    """Find the blocks, and which of their rows a feature is made of.

    Raises:
        UnsupportedModelError: nothing that encodes images looks like a list of blocks, or no feature depends on it.
    """
    path, blocks = lists(notes, encoding=True)
    if not blocks:
        raise UnsupportedModelError(
            "nothing that encodes images is a list of blocks with attention: methods have no tokens to act on there"
        )
    features = rows_of(notes.made)
    outputs = [block.output for block in blocks]
    for feature in range(len(features) // 2, len(features)):
        gradients = torch.autograd.grad(features[feature].sum(), outputs, retain_graph=True, allow_unused=True)
        reads = [0 if g is None else int(g.flatten(0, -2).any(-1).sum()) for g in gradients]
        if any(reads):
            last = max(i for i, count in enumerate(reads) if count)
            return Vision(notes, trial, prefix, path, blocks, reads[last], last)
    raise UnsupportedModelError(f"no feature is made of what the blocks under {path!r} put out")


def lists(notes: Notes, *, encoding: bool) -> tuple[str, list[Call]]:
    """Path and calls of the longest list of modules with attention, or a state, in them, that were called in order."""
    groups: dict[str, dict[int, Call]] = defaultdict(dict)
    for call in notes.calls:
        found = re.fullmatch(r"(.*)\.(\d+)", call.path)
        if found and call.encoding == encoding and call.rows[0] > 0 and call.rows[1] > 0 and _mixes(notes, call):
            groups[found[1]].setdefault(int(found[2]), call)
    if not groups:
        return "", []
    path = max(groups, key=lambda name: (len(groups[name]), -name.count(".")))
    return path, [groups[path][i] for i in sorted(groups[path])]


def _mixes(notes: Notes, call: Call) -> bool:
    return any(is_attention(each) for each in notes.inside(call))


def is_attention(call: Call) -> bool:
    """Whether a module is called an attention."""
    return "attention" in call.kind.lower() or call.name in ("attn", "self_attn")


def is_norm(call: Call) -> bool:
    """Whether a module is called a norm."""
    return "norm" in call.kind.lower()


def facts(vision: Vision, base: Any) -> tuple[Facts, list[str]]:
    """Facts of `Tower` by field, functions as what they give here; and fields that a call cannot tell."""
    notes, block = vision.notes, vision.blocks[0]
    under = vision.short(vision.path)
    module, _, blocks = under.partition(".")
    found: Facts = {"module": module, "blocks": blocks, "layout": "packed" if vision.packed else "padded"}
    found |= _inside(notes, block) | _arguments(vision, block)
    found |= {"unit": vision.reads, "last_block": vision.last, "leading": _leading(vision)}
    side = math.isqrt(vision.reads)
    found["grid"] = [(1, height // side, width // side) for height, width in vision.trial.sides]
    count = len(rows_of(notes.made))
    whole = vision.units + found["leading"] * len(vision.trial.sides)
    found["kept_rows"] = found["leading"] if found["leading"] and count == whole else 0
    if count not in (vision.units, whole):
        found["arrangements"] = ("get_image_features",)
    windows = len({_lengths(each) for each in vision.blocks} - {None}) > 1
    single = not vision.packed and block.rows[0] == sum(h * w for h, w in vision.trial.sides) and _images(block) == 1
    if windows:
        found["order"] = True
    if windows or (single and len(vision.trial.sides) > 1):
        found["segments"] = True
    found["resize"] = _resizes(vision, base)
    merged = _merges(vision)
    if merged:
        found["merger"] = merged
    taps = _taps(vision)
    if taps:
        found |= {"taps": taps, "features": _fields(notes.made)}
    return found, ["around", "canvas", "padded", "patches", "pooler", "states"]


def _images(call: Call) -> int:
    return int(call.input.shape[0]) if call.input is not None and call.input.dim() == 3 else 1


def _inside(notes: Notes, block: Call) -> Facts:
    """Names in a block."""
    calls = [call for call in notes.inside(block) if not any(word in call.kind for word in PASSIVE)]
    attention = next(call for call in calls if is_attention(call))
    before = [call for call in calls if call.start < attention.start and is_norm(call)]
    after = [call for call in calls if call.start > attention.start]
    middle = next((call for call in after if is_norm(call) and call.input is not attention.output), None)
    linear = [call for call in notes.inside(attention) if isinstance(call.module, nn.Linear)]
    found: Facts = {"attention": attention.name}
    if before:
        found["attention_norm"] = before[-1].name
    if middle is not None:
        found |= {"mid_norm": middle.name, "ffn_end": after[-1].name}
    if linear:
        first: Any = linear[0].module
        last: Any = linear[-1].module
        found |= {"query": linear[0].name, "attention_end": linear[-1].name}
        found["fused"] = first.out_features > last.in_features
    scales = [name for name, _ in block.module.named_parameters(recurse=False)]
    if scales:
        found["ffn_scale"] = scales[-1]
    return found


def _arguments(vision: Vision, block: Call) -> Facts:
    """Arguments of a block with an axis of tokens."""
    hidden = block.input
    rows = hidden.shape[-2] if hidden is not None else -1
    found: dict[str, int | str] = {}
    for name, value in block.given.items():
        axis = "mask" if "mask" in name and (value is None or isinstance(value, Tensor)) else _axis(name, value, rows)
        if value is not hidden and axis is not None:
            found[name] = axis
    facts: Facts = {"block_args": found}
    attention = next(call for call in vision.notes.inside(block) if is_attention(call))
    own, inner = (inspect.signature(call.module.forward).parameters for call in (block, attention))
    if "attention_mask" in inner and "attention_mask" not in own:
        facts["attention_args"] = {"attention_mask": "mask"}
    return facts


def _axis(name: str, value: Any, rows: int) -> int | str | None:
    """Where an argument has its tokens, in the words of `Tower.block_args`."""
    if isinstance(value, tuple) and value and all(isinstance(each, Tensor) and rows in each.shape for each in value):
        return "rotary"
    if not isinstance(value, Tensor):
        return None
    if value.dim() == 1 and not value.is_floating_point() and re.search(r"seq_?len", name):
        return "seqlens"
    axes = [axis for axis in range(-1, -value.dim() - 1, -1) if value.shape[axis] == rows]
    return axes[0] if axes else None


def _leading(vision: Vision) -> int:
    """Rows in front of the patches of an image."""
    if vision.packed or _images(vision.blocks[0]) != len(vision.trial.sides):
        return 0
    height, width = vision.trial.sides[0]
    return max(0, vision.blocks[0].rows[0] // len(vision.trial.sides) - height * width)


def _lengths(call: Call) -> tuple[int, ...] | None:
    """The cumulative lengths that a block was given."""
    for name, value in call.given.items():
        if _axis(name, value, -1) == "seqlens":
            return tuple(value.tolist())
    return None


def _resizes(vision: Vision, base: Any) -> bool:
    """Whether the tower takes images of another size than its usual one."""
    pixels = vision.trial.pixels["pixel_values"]
    if vision.packed or pixels.dim() != 4 or pixels.shape[-1] != pixels.shape[-2]:
        return True
    tower = base.get_submodule(vision.short(vision.path).partition(".")[0])
    half = pixels[..., : pixels.shape[-2] // 2, : pixels.shape[-1] // 2]
    for more in ({"interpolate_pos_encoding": True}, {}):
        try:
            with torch.no_grad():
                tower(half, **more)
            return True
        except Exception:  # stock code says in many ways that it does not
            continue
    return False


def _merges(vision: Vision) -> str:
    """Path of the module that makes fewer rows between two blocks; "" where none does."""
    for one, other in zip(vision.blocks, vision.blocks[1:]):
        if other.rows[0] < one.rows[1]:
            between = [call for call in vision.notes.calls if one.end < call.start < other.start]
            found = next((call for call in between if call.rows[1] == other.rows[0]), None)
            tower = vision.short(vision.path).partition(".")[0]
            return vision.short(found.path).removeprefix(f"{tower}.") if found else ""
    return ""


def _taps(vision: Vision) -> str:
    """Path of a list of modules that were called between blocks, or after them one by one, and are none."""
    names: dict[str, set[str]] = defaultdict(set)
    for call in vision.notes.calls:
        found = re.fullmatch(r"(.*)\.\d+", call.path)
        between = vision.blocks[0].start < call.start < vision.blocks[-1].start
        if found and call.encoding and between and not call.below(vision.path):
            names[found[1]].add(call.path)
    return vision.short(min(names, key=len)) if names else ""


def _fields(made: Any) -> tuple[str, ...]:
    """Fields of what stock code returns of images that hold features."""
    listed = [name for name, value in made.items() if not isinstance(value, Tensor) and _holds_tensors(value)]
    return ("pooler_output", *(name for name in listed if name not in ("pooler_output", "hidden_states", "attentions")))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, (list, tuple)) and bool(value) and all(map(_holds_tensors, value))
    )
