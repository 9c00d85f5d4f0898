"""What methods spend, on a few prompts."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.lab.evaluation.asking import Cost
from foveate.lab.evaluation.fidelity.forced import Said, hear, say
from foveate.lab.evaluation.fidelity.prompts import Prompt
from foveate.lab.evaluation.fidelity.stock import Stock
from foveate.method import Method

#: Prompts of each layout, and layouts at most.
PROBES, LAYOUTS = 4, 6


class Meter:
    """What methods spend on a few prompts of the most frequent layouts."""

    def __init__(self, stock: Stock, prompts: Sequence[Prompt], batch: int, new_tokens: int) -> None:
        self.stock, self.batch, self.new_tokens = stock, batch, new_tokens
        layouts: dict[tuple[tuple[int, int], ...], list[Prompt]] = {}
        for prompt in prompts:
            layouts.setdefault(prompt.sizes, []).append(prompt)
        self.layouts = sorted(layouts.values(), key=len, reverse=True)[:LAYOUTS]
        self._said: dict[int, list[Said]] = {}

    def __call__(self, method: Method) -> Cost:
        """A method whose counts follow from the grid alone is measured on one prompt of each layout."""
        probes = self._probes(1 if _fixed(method) else PROBES)
        heard = (
            (hear(self.stock.model, method, said)[0].cost, len(layout)) for said, layout in zip(probes, self.layouts)
        )
        return Cost.total((cost, weight) for cost, weight in heard if cost is not None)

    def _probes(self, each: int) -> list[Said]:
        if each not in self._said:
            groups = [layout[: min(each, self.batch)] for layout in self.layouts]
            self._said[each] = [asked(self.stock, group, self.new_tokens) for group in groups]
        return self._said[each]


def _fixed(method: Method) -> bool:
    return all(part.has_fixed_budget for part in method.parts())


def asked(stock: Stock, group: Sequence[Prompt], new_tokens: int) -> Said:
    """The stock model's answers to a batch."""
    ids = tuple(prompt.id for prompt in group)
    return say(stock.model, stock.processor.tokenizer, stock.inputs(group), ids, new_tokens)
