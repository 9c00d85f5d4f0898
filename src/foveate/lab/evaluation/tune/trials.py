"""Judging one setting after the other, on the same prompts; what was judged is on disk, so a search that stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.errors import FoveateError
from foveate.lab.asker import Asker, Cost
from foveate.lab.evaluation.fidelity.table import kls
from foveate.lab.evaluation.forced import Said, asked, hear
from foveate.lab.evaluation.questions import Prompt
from foveate.lab.evaluation.runner import Tell
from foveate.lab.evaluation.store import Store
from foveate.method import Method
from foveate.methods import method_from_dict


@dataclass(frozen=True)
class Trial:
    """A setting that was judged.

    Attributes:
        id: the method as JSON.
        kl: mean over the prompts of the search, in nats; by ``withdrawal``, of the first token, KL(compressed || stock).
        cost: of a prompt, the mean over them.
    """

    id: str
    kl: float
    cost: Cost

    @property
    def method(self) -> Method:
        return method_from_dict(self.id)

    def spent(self, by: str) -> float:
        """Over the stock model's."""
        return self.cost.share(by)


class Enough(Exception):  # noqa: N818 - not a mistake: the search may try no more
    """As many settings were judged as may be."""


class Trials:
    """The judge of a search."""

    def __init__(
        self,
        asker: Asker,
        batches: Sequence[Sequence[Prompt]],
        new_tokens: int,
        path: Path,
        header: dict[str, Any],
        most: int,
        tell: Tell,
        reverse: bool = False,
    ) -> None:
        self.asker, self.batches, self.new_tokens, self.most, self.tell = asker, batches, new_tokens, most, tell
        self.reverse = reverse
        self.store = Store(path, header, Trial)
        self.judged: dict[str, Trial] = {}  # in this search, in order
        self._said: list[Said] = []

    def __call__(self, method: Method) -> float:
        """KL of a method. The stock model's probabilities stay in memory.

        Raises:
            Enough: this would be one setting too many.
        """
        name = json.dumps(method.to_dict())
        if name not in self.judged:
            if len(self.judged) == self.most:
                raise Enough
            self.tell(f"trial {len(self.judged) + 1} of at most {self.most}", len(self.judged) / self.most)
            if name not in self.store.records:
                self.store.add([self._judge(name, method)])
            self.judged[name] = self.store.records[name]
        return self.judged[name].kl

    def fits(self, method: Method) -> bool:
        """Whether a method can be attached."""
        try:
            self.asker.attach(method).remove()
        except FoveateError:
            return False
        return True

    def _judge(self, name: str, method: Method) -> Trial:
        if not self._said:
            self._said = [asked(self.asker, group, self.new_tokens) for group in self.batches]
        told = (hear(self.asker.model, method, said, self.asker.learned, self.reverse) for said in self._said)
        heard = [each for some in told for each in some]
        costs = [each.cost for each in heard if each.cost is not None]
        mean = {key: fmean(getattr(cost, key) for cost in costs) for key in vars(costs[0])}
        return Trial(name, float(kls(heard).mean()), Cost(**mean))
