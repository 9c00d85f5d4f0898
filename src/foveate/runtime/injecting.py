"""Sites that remember something of an image, and sites that add something of it to text, beside the FFN of a decoder layer.

A token of text gets what was remembered of the images of its sample that have ended before it. So a prompt says the same as
its chunks, its turns, and the words that follow it one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveate.errors import InputError
from foveate.models.family import Decoder
from foveate.runtime.asking import refuse_replay
from foveate.runtime.checks import check_injected, check_remember, flops_of, flops_of_injecting
from foveate.runtime.hooks import Hooks, first_argument
from foveate.runtime.remembering import Memory, Remembered
from foveate.runtime.trace import visit_of
from foveate.site import Into
from foveate.tokens import Tokens

if TYPE_CHECKING:
    from foveate.runtime.context import Action, Context, DecoderPass


@dataclass(frozen=True, eq=False)
class Prompted:
    """What a forward brings, on the host.

    Attributes:
        text: ``(B, L)`` bool, tokens that are neither visual nor padding.
        sample: ``(B, L)`` which one of its row each token belongs to.
        ends: by row and clip, the place of the last token of every image, or whole video, that ends in this forward.
    """

    text: Tensor
    sample: Tensor
    ends: dict[tuple[int, int], int]

    @classmethod
    def of(cls, call: DecoderPass) -> Prompted:
        """That of a forward with images. This asks the device once."""
        whole, samples = call.complete, call.samples
        assert whole is not None, "of a forward with images"
        assert samples is not None
        spans, counts = whole.tokens.spans, list(whole.tokens.counts)
        row, slot, index = torch.stack([whole.row, whole.slot, whole.tokens.index]).cpu()
        text = samples.present.clone()
        text[row, slot] = False
        ends: dict[tuple[int, int], int] = {}
        for s, (slots, cells) in enumerate(zip(slot.split(counts), index.split(counts))):
            key = spans.row[s], spans.clip[s]
            if counts[s] and (call.names is None or _is_last(call, s, int(cells.max()))):
                ends[key] = max(ends.get(key, -1), int(slots.max()))
        return cls(text, samples.number, ends)


def _is_last(call: DecoderPass, span: int, cell: int) -> bool:
    """Whether a chunk of a prompt, of whose ``span`` it brings tokens up to ``cell``, ends the image or video of that span."""
    assert call.names is not None
    assert call.complete is not None
    record, _, clip = call.names[span]
    frames, height, width = call.records[record].order.grid[clip]
    return call.complete.tokens.spans.frame[span] == frames - 1 and cell == height * width - 1


def _prompted(call: DecoderPass) -> Prompted:
    return call.memo.once("prompted", (), lambda: Prompted.of(call))


# -- remember ------------------------------------------------------------------------------------------------------------


def remember(action: Action, call: DecoderPass, tokens: Tokens, hidden: Tensor) -> Tensor:
    """One remember site: the method is asked about the images that are complete. ``hidden (B, P, C)`` stays as it is."""
    name, site, prompted = action.method.name(), action.site, _prompted(call)
    memory = call.states.memories.get(action.memory)
    if memory is None or not call.past:
        samples = [0] * call.batch if call.past else prompted.sample[:, -1].tolist()
        memory = call.states.memories[action.memory] = Memory(name, [Remembered(sample=n) for n in samples])
    shown = tokens
    if call.names is not None:  # this forward may bring a part of an image
        shown = memory.complete(tokens, prompted.ends)
        if site.signals and shown is not tokens:
            asked = ", ".join(map(str, site.asked))
            raise InputError(
                f"{name} wants {asked} of whole images at {site}, and this prompt comes in chunks that cut one: use "
                "prefill_chunk_size=None"
            )
    if not shown.counts:
        return hidden
    rows, counts = check_remember(action.method, site, shown, action.ask(shown)[0]).packed()
    parts = rows.to(hidden.dtype).split(list(counts))
    for clip in shown.spans.clips:
        row = shown.spans.row[clip[0]]
        end = prompted.ends[row, shown.spans.clip[clip[0]]]
        sample = memory.rows[row].sample if call.past else int(prompted.sample[row, end])
        memory.rows[row] = memory.rows[row].add(torch.cat([parts[s] for s in clip]), call.past + end + 1, sample)
    flops = flops_of(action.method, shown, site)
    images = len(shown.spans.clips)
    says = f"{sum(counts)} rows remembered of {images} image{'s' * (images != 1)}"
    call.trace.add(visit_of(site, name, flops, tokens, says=says))
    return hidden


# -- inject --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Group:
    """Tokens of text that have the same memory: ``(M,)`` rows of the batch and places in this forward, on the host."""

    row: Tensor
    place: Tensor
    memory: Tensor


def groups_of(call: DecoderPass, memory: Memory, into: Into, prompt_ends: int) -> list[Group]:
    """The tokens of text of a forward that have something to remember, by what that is. Rows of beams share it.

    Args:
        prompt_ends: the place in this forward where generated tokens begin.
    """
    prompted = None if call.layout is None else _prompted(call)
    border = min(max(prompt_ends, 0), call.length)
    first, last = (border if into == "generated" else 0), (border if into == "prompt" else call.length)
    found: dict[tuple[int, int, int], tuple[Remembered, list[tuple[Tensor, Tensor]]]] = {}
    for row, known in enumerate(memory.rows):
        if not known.images:
            continue
        place = torch.arange(first, last)
        if prompted is not None:
            place = place[prompted.text[row, first:last]]
        if not len(place):
            continue
        begins = torch.tensor([image.place for image in known.images])
        images = torch.searchsorted(begins, place + call.past, right=True)
        sample = torch.full_like(place, known.sample)
        if prompted is not None and not call.past:
            sample = prompted.sample[row, place]
        for s, n in torch.stack([sample, images], 1).unique(dim=0).tolist():
            mine = place[(sample == s) & (images == n)]
            found.setdefault((id(known), s, n), (known, []))[1].append((torch.full_like(mine, row), mine))
    groups = []
    for (_, s, n), (known, parts) in found.items():
        rows = known.of(s, n)
        if rows is not None:
            groups.append(Group(torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts]), rows))
    return groups


class InjectHooks:
    """Puts the inject sites of one decoder layer on its FFN."""

    def __init__(self, i: int, layer: nn.Module, spec: Decoder, context: Context, actions: Sequence[Action]) -> None:
        self.i, self.layer, self.context, self.actions = i, layer, context, actions
        self.ffn = layer.get_submodule(spec.ffn)

    def attach(self, hooks: Hooks) -> None:
        """Hook the FFN, if there is something to do."""
        if self.actions:
            hooks.pre(self.ffn, self._before)
            hooks.post(self.ffn, self._after)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = self.context.decoder
        if call is None:
            return
        call.added = []
        for action in self.actions if call.states.memories else ():
            self._inject(call, action, first_argument(args, kwargs, "hidden_states"))

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = self.context.decoder
        if call is None or not call.added:
            return None
        made: Tensor = output[0] if isinstance(output, tuple) else output  # (experts may give their router's logits)
        rows = made.flatten(0, -2)
        for place, added in call.added:
            rows = rows.index_add(0, place.to(rows.device), added.to(rows))
        call.added = []
        return (rows.view_as(made), *output[1:]) if isinstance(output, tuple) else rows.view_as(made)

    def _inject(self, call: DecoderPass, action: Action, x: Tensor) -> None:
        """Ask the method about the text of a forward, ``x (B, P, C)`` being all that the FFN sees."""
        method, site, memory = action.method, action.site, call.states.memories.get(action.memory)
        if memory is None:
            return
        what = f"of {site.into} {action.memory}"
        groups = call.memo.once(
            f"groups {what}", (), lambda: groups_of(call, memory, site.into, self._prompt_ends(call))
        )
        if not groups:
            return
        refuse_replay(self.i, self.layer)
        place = call.memo.once(f"places {what}", (call.reduced,), partial(_places, call, groups, x)).to(x.device)
        parts = x.flatten(0, -2).index_select(0, place).split([len(group.place) for group in groups])
        made, flops = [], 0
        for own, group in zip(parts, groups):
            rows = group.memory.to(x.device)
            flops += flops_of_injecting(method, own, rows, site)
            try:
                added = method.inject(own, rows, site)
            except Exception as error:
                action.name_in(error, "inject")
                raise
            made.append(check_injected(method, site, own, added))
        call.added.append((place, torch.cat(made)))
        if call.layout is None:  # a step, which nobody wants to read of
            call.trace.signal_flops += flops
        else:
            n = len(place)
            says = f"adds to {n} token{'s' * (n != 1)} of text"
            call.trace.add(visit_of(site, method.name(), flops, call.layout.tokens, says=says))

    def _prompt_ends(self, call: DecoderPass) -> int:
        """The place in a forward where generated tokens begin. (Outside of ``generate``, one without images has no others.)"""
        prompt = self.context.prompt
        if prompt is None or prompt.alone:
            return 0 if call.layout is None else call.length
        return prompt.total - call.past


def _places(call: DecoderPass, groups: Sequence[Group], x: Tensor) -> Tensor:
    """``(M,)`` where the tokens of all groups are now in ``x.flatten(0, -2)``, group after group."""
    row, place = torch.stack([torch.cat([g.row for g in groups]), torch.cat([g.place for g in groups])])
    layout = call.reduced
    if layout is not None:
        slots = call.memo.once("slots", (layout,), layout.slots)
        row, place = (each.to(slots.device, non_blocking=True) for each in (row, place))
        place = slots[row, place]
    flat: Tensor = row * x.shape[-2] + place
    return flat.to(x.device, non_blocking=True)
