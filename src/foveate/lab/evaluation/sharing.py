"""Questions about the same images, asked together: what does not depend on the question is computed once.

What that is follows from what a method reads (`shared_by`). If it reads images alone, the prompt up to the end of its images is
read once, with the method at work, and the questions go on behind it, each a row of its own with a copy of that cache, at
the positions that it would have alone. If it reads the text, too, but acts in the language model only, the vision tower sees
each image once; where several methods are asked the same, so it does for all that leave it as it is (`Encoded`). In every case
a question gets the answer that it gets alone (tested, method by method).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from foveate import Memory
from foveate.handle import Handle
from foveate.lab.asker import Answer, Asker, Cost
from foveate.lab.evaluation.bounds import AntiOracle, Oracle, told
from foveate.lab.evaluation.questions import Prompt
from foveate.method import Host, Method, Site
from foveate.models import family_of

Part = Literal["prompt", "tower", "nothing"]


def shared_by(method: Method | None, host: Host) -> Part:
    """What questions about the same images have in common: the prompt up to their end, or the tower's features.

    Args:
        method: None: the stock model, which decides nothing.
        host: the model.
    """
    parts = () if method is None else method.parts()
    if any(_is_special(part) for part in parts):
        return "nothing"
    if not any(_reads_question(part, host) for part in parts):
        return "prompt"
    return "nothing" if any(_needs_tower(part.sites(host)) for part in parts) else "tower"


def _is_special(part: Method) -> bool:
    """Whether what a part does cannot be told from its sites and for each row alone."""
    return part.across_images or type(part).attach is not Method.attach


def _reads_question(part: Method, host: Host) -> bool:
    """Whether what a part does depends on the text, or is done after it."""
    if isinstance(part, (Oracle, AntiOracle)):  # they are told what is asked
        return True
    return any(
        site.at in ("decode", "cache")
        or site.into != "text"
        or any(signal.reads_text(site.at) for signal in site.asked)
        for site in part.sites(host)
    )


def _needs_tower(sites: Sequence[Site]) -> bool:
    """Whether sites need the vision tower to run in the very call that asks the question."""
    at_work = any(site.at in ("pixels", "tower", "tower_output") for site in sites)
    return at_work or any(signal.at == "tower" or signal.kind == "patches" for site in sites for signal in site.asked)


@dataclass(frozen=True, eq=False)
class Shared:
    """A batch of prompts, with inputs of them, whose images are the same in places.

    Attributes:
        prompts: what is asked.
        inputs: of the whole batch, padded on the left, with images of every row.
        view: ``(B,)`` which images each row shows; numbered as they come.
        first: a row that shows them, for each.
        start: ``(B,)`` how much of each row is padding.
        length: of the prompt up to the end of its images, the same in all rows; 0: these differ, so nothing is shared.
    """

    prompts: Sequence[Prompt]
    inputs: Any
    view: Tensor
    first: tuple[int, ...]
    start: Tensor
    length: int

    @classmethod
    def of(cls, asker: Asker, prompts: Sequence[Prompt], inputs: Any) -> Shared:
        names = list(dict.fromkeys(prompt.seen for prompt in prompts))
        view = torch.tensor([names.index(prompt.seen) for prompt in prompts])
        first = tuple(int((view == number).nonzero()[0]) for number in range(len(names)))
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        token = getattr(asker.model.config, family_of(asker.model.config).modalities["pixel_values"])
        start = (mask == 0).sum(1)
        ends = (ids == token).long().cumsum(1).argmax(1) + 1 - start  # of the last visual token
        length = int(ends[0])
        heads = [row[begin : begin + length] for row, begin in zip(ids, start.tolist())]
        same = bool((ends == length).all()) and all(torch.equal(head, heads[0]) for head in heads)
        return cls(prompts, inputs, view, first, start, length if same else 0)

    @cached_property
    def images(self) -> list[Tensor]:
        """The pixels of each view."""
        pixels: Tensor = self.inputs["pixel_values"]
        per_row = pixels.view(len(self.view), -1, *pixels.shape[1:])
        return [per_row[row] for row in self.first]

    def behind(self, asker: Asker) -> tuple[dict[str, Any], Cost | None]:
        """Read the images of each view once; what the model is called with for the questions behind them, and what it cost.

        A question that is shorter than others has its padding between the images and itself.
        """
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        rows, start = list(self.first), self.start
        head = ids[0, int(start[0]) : int(start[0]) + self.length].expand(len(rows), -1)
        with torch.inference_mode():
            out = asker.model(
                input_ids=head,
                attention_mask=torch.ones_like(head),
                pixel_values=torch.cat(self.images),
                use_cache=True,
                logits_to_keep=1,
            )
        cost = None if asker.handle is None else Cost.mean(asker.handle.report(), len(rows))
        out.past_key_values.batch_select_indices(self.view)
        width = ids.shape[1] - int(start.min()) - self.length
        behind, there = ids[:, ids.shape[1] - width :].clone(), mask[:, mask.shape[1] - width :].clone()
        own = ids.shape[1] - start - self.length  # tokens of each question
        padding = torch.arange(width)[None] < (width - own)[:, None]
        there[padding] = 0
        behind[padding] = asker.pad
        given = {
            "input_ids": torch.cat((head[:1].expand(len(ids), -1), behind), 1),
            "attention_mask": torch.cat((torch.ones_like(head[:1]).expand(len(ids), -1), there), 1),
            _cache_name(asker): out.past_key_values,
        }
        return given, cost

    def recalled(self, handle: Handle) -> dict[str, Any]:
        """Let the tower see each image once; what the model is called with in place of pixels."""
        memories = [handle.encode({"pixel_values": images}) for images in self.images]
        text = {name: value for name, value in self.inputs.items() if name != "pixel_values"}
        return {**text, "memory": [memories[view] for view in self.view.tolist()]}


class Encoded:
    """A batch that several methods are asked, one after another: those that leave the vision tower as it is share its features.

    Args:
        inputs: of the batch, with images and without videos.
    """

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self._tower = 0.0  # FLOPs for the images of one row
        self._memory: Memory | None = None

    def answers(self, asker: Asker, method: Method | None, most: int) -> list[Answer]:
        """What is answered to each question, with the method attached already, and what it costs with the tower."""
        if method is None or asker.handle is None or not self._can_share(asker, method):
            return asker.answers(self.inputs, {}, most)
        if not self._tower:
            found = asker.answers(self.inputs, {}, most)
            spent = asker.handle.report().full_flops
            self._tower = float(spent["tower"] + spent["projector"]) / len(found)
            return found
        if self._memory is None:
            self._memory = asker.handle.encode(self.inputs)
        text = {name: value for name, value in self.inputs.items() if name != "pixel_values"}
        return [_with_tower(answer, self._tower) for answer in asker.answers(text | {"memory": self._memory}, {}, most)]

    def _can_share(self, asker: Asker, method: Method) -> bool:
        if "pixel_values" not in self.inputs or asker.learned is not None or not _takes_memories(asker):
            return False
        return not any(
            part.stores == "appended" or _is_special(part) or _needs_tower(part.sites(asker.host))
            for part in method.parts()
        )


def answers(asker: Asker, shared: Shared, method: Method | None, most: int) -> list[Answer]:
    """What is answered to each question, with the method attached already, and what it would have cost alone."""
    part = shared_by(method, asker.host)
    if part == "prompt" and shared.length:
        given, head = shared.behind(asker)
        share = len(shared.first) / len(shared.view)
        return [_with_head(answer, head, share) for answer in asker.answers(given, {}, most)]
    if part == "tower" and len(shared.first) < len(shared.view) and asker.handle is not None and _takes_memories(asker):
        tower = _tower_flops(asker, shared)
        return [_with_tower(answer, tower) for answer in asker.answers(shared.recalled(asker.handle), {}, most)]
    return asker.answers(shared.inputs, {}, most)


def _cache_name(asker: Asker) -> str:
    """What `generate` calls a cache: the name changed with transformers 5.24."""
    known = inspect.signature(asker.model.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in known else "past_key_values"


def _takes_memories(asker: Asker) -> bool:
    base = asker.model.get_submodule(family_of(asker.model.config).base)
    return "mm_encoder_outputs" in inspect.signature(base.forward).parameters


def _tower_flops(asker: Asker, shared: Shared) -> float:
    """FLOPs of the vision tower and the projector for the images of one row; no method acts there."""
    assert asker.handle is not None
    one = {name: value[:1] for name, value in shared.inputs.items()} | {"pixel_values": shared.images[0]}
    with told(shared.prompts[:1]):
        asker.answers(one, {}, 1)
    spent = asker.handle.report().full_flops
    return float(spent["tower"] + spent["projector"])


def _with_head(answer: Answer, head: Cost | None, share: float) -> Answer:
    """What a question would have cost alone, which had but a ``share`` of reading its images."""
    if answer.cost is None or head is None:
        return answer
    mine, rest = answer.cost, 1 - share
    flops = mine.flops + rest * head.flops, mine.full_flops + rest * head.full_flops
    cost = Cost(head.tokens, flops[0], mine.kv, head.full_tokens, flops[1], mine.full_kv)
    return Answer(answer.text, answer.tokens, cost)


def _with_tower(answer: Answer, flops: float) -> Answer:
    if answer.cost is None:
        return answer
    cost = answer.cost
    spent = cost.flops + flops, cost.full_flops + flops
    return Answer(
        answer.text, answer.tokens, Cost(cost.tokens, spent[0], cost.kv, cost.full_tokens, spent[1], cost.full_kv)
    )
