"""Where rows become features: the module after which rows are full length again, and what comes before it."""

from __future__ import annotations

from torch import nn

from foveate.lab.inspection.spies import Call
from foveate.lab.inspection.tower import Facts, Vision


def facts(vision: Vision) -> Facts:
    """The facts `output`, `neck` and `joins` of a tower.

    Of the modules after the last block, the outermost one that gives a row for every token makes features. Where it is given
    more rows, it puts patches together itself, or stock code does inside it, before the first module that gets one row a token.
    """
    end = vision.blocks[vision.last].end
    after = [
        call
        for call in vision.notes.calls
        if call.encoding and call.start > end and not call.below(vision.path) and _learned(call)
    ]
    outer = [call for call in after if call.parent not in after]
    giving = [call for call in outer if vision.units in (call.rows[1], call.rows[1] - _specials(vision))]
    if not giving:
        return {}
    last = giving[-1]
    several, per_token = vision.reads > 1, last.rows[0] == vision.units
    if not several:
        return {"output": vision.short(last.path)}
    if vision.packed:
        before = [call for call in outer if call.start < last.start] if per_token else []
        return {"output": vision.short(last.path), "neck": tuple(vision.short(call.path) for call in before)}
    if per_token:
        chain = [call for call in giving if call.rows[0] == vision.units]
    else:
        chain = _per_token(vision, last)
        if not chain or chain[-1].output is not last.output:
            return {"output": vision.short(last.path), "joins": "inside"}
    *neck, out = chain
    return {
        "output": vision.short(out.path),
        "neck": tuple(vision.short(call.path) for call in neck),
        "joins": "before",
    }


def _per_token(vision: Vision, call: Call) -> list[Call]:
    """The outermost modules inside a call that are given one row a token, ``(tokens, C)`` or ``(images, tokens, C)``."""
    found: list[Call] = []
    for each in vision.notes.inside(call):
        if each.rows[0] == vision.units and each.input is not None and each.input.dim() in (2, 3):
            found += [each] if _learned(each) else []
        else:
            found += _per_token(vision, each)
    return found


def _specials(vision: Vision) -> int:
    """Rows of all images that stand for no patch."""
    patches = sum(height * width for height, width in vision.trial.sides)
    return max(0, vision.blocks[0].rows[0] - patches) if not vision.packed else 0


def _learned(call: Call) -> bool:
    module: nn.Module = call.module
    return any(True for _ in module.parameters())
