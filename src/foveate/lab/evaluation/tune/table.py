"""What a search found: the method as JSON for ``--method-json``, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.lab import typed
from foveate.lab.checks import COUNTED
from foveate.lab.evaluation.fidelity.table import FEW, NUMBERS, Line, cells, interval, nats
from foveate.lab.evaluation.report import Content, Report, Table
from foveate.lab.evaluation.statistics import Share
from foveate.lab.evaluation.tune.request import LOST, METHOD, Tune
from foveate.lab.evaluation.tune.search import FIRST, takes_layers
from foveate.method import Method
from foveate.methods import method_from_dict

GIVEN, SAME_COST, FOUND = "given", "given, at this cost", "found"
OMITTED = NUMBERS.index("first top-1")


@dataclass(frozen=True)
class Tuned:
    """What came out.

    Attributes:
        request: what was looked for; ``given``: where the search began.
        model: its name or folder; ``identity``: as in the header of every file.
        search: how.
        found: what was found.
        trials: how many settings were judged; ``exhausted``: the search wanted to judge more.
        calibration, held_out: what was given and what was found (the last), on the prompts of the search and on the others.
        gain: KL of what was given, at this cost, less that of what was found, on the prompts held out; None: nothing to
            compare.
    """

    request: Tune
    given: Method
    model: str
    identity: dict[str, Any]
    search: str
    found: Method
    trials: int
    exhausted: bool
    calibration: tuple[Line, ...]
    held_out: tuple[Line, ...]
    gain: Share | None

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return self.request.out

    @property
    def lost(self) -> bool:
        """Whether what was given is better, at the same cost, on prompts that the search has not seen."""
        return self.gain is not None and self.gain.below(0)

    @property
    def method(self) -> Method:
        """The one to use."""
        return method_from_dict(self.held_out[-2].method) if self.lost else self.found

    @property
    def command(self) -> str:
        """What repeats the run, but for its folder."""
        return typed.command("foveate tune", self.request)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the same for a run that was interrupted and one that was not."""
        return {
            "command": self.command,
            "model": self.model,
            **self.identity,
            "search": self.search,
            "trials": self.trials,
            "exhausted": self.exhausted,
            "method": self.method.to_dict(),
            "found": self.found.to_dict(),
            "calibration": [asdict(line) for line in self.calibration],
            "held_out": [asdict(line) for line in self.held_out],
            "gain": None if self.gain is None else asdict(self.gain),
            "verdict": self.verdict(),
        }

    def files(self) -> Mapping[str, Content]:
        """The method to use, and the one that was found where that is another."""
        return {METHOD: self.method.to_dict(), **({LOST: self.found.to_dict()} if self.lost else {})}

    def report(self) -> Report:
        """Every setting on the prompts of the search, then on those held out."""
        parts = (("searched", self.calibration), ("held out", self.held_out))
        rows = [(line.label, part, *_shown(cells(line))) for part, lines in parts for line in lines]
        return Report(
            f"{self.model}: {self.given.name()}, tuned",
            self.command,
            self._summary(),
            (Table(("setting", "prompts", *_shown(NUMBERS)), rows),),
            tuple(self._remarks()),
            json.dumps(self.method.to_dict()),
            tuple(self.verdict()),
        )

    @property
    def _withdrawal(self) -> bool:
        """Whether the layer was searched as VTW's authors do, by another divergence."""
        return self.search == "withdrawal"

    @property
    def _masked(self) -> bool:
        """Whether layers of a mask were ranked."""
        return self.search == "layers" and takes_layers(self.given) != "layers"

    def _summary(self) -> str:
        request, counted = self.request, COUNTED[self.request.by]
        if self._withdrawal:
            return (
                f"Looked for the first layer, from layer {FIRST} on, before which all visual tokens can leave with a KL of at "
                f"most {request.max_kl:.3g} nats of the first token: {self.trials} settings judged (search: {self.search})."
            )
        wanted = (
            f"{'the most layers' if self._masked else f'the fewest {counted}'} with a KL of at most {request.max_kl:.3g} nats"
            if request.max_kl is not None
            else f"the least KL for {request.budget:.3g} of the {counted}"
        )
        more = "; there was more to try: raise --trials" if self.exhausted else ""
        return f"Looked for {wanted}: {self.trials} settings judged (search: {self.search}){more}."

    def verdict(self) -> list[str]:
        """What a user wants to know: does it hold on prompts that the search has not seen, and was it worth the search?"""
        lines, last, most = [], self.held_out[-1], self.request.max_kl
        if most is not None:
            share = float(getattr(last.spent, self.request.by))
            asked, of = (last.first_kl, " of the first token") if self._withdrawal else (last.kl, "")
            said = "within" if asked.value <= most else "above"
            lines.append(
                f"On prompts held out its KL{of} is {nats(asked.value)} ({interval(asked)}), {said} the {most:.3g} that was "
                f"asked for; it spends {share:.1%} of the {COUNTED[self.request.by]}."
            )
            if self._masked:
                lines.append("A mask saves nothing that is counted.")
            elif share > 0.99:
                lines.append("That saves nothing: this method cannot be so faithful here.")
        if self.gain is None:
            return lines
        before, gain = self.held_out[-2], self.gain
        if before.method == last.method:
            return [*lines, "Nothing was found that is better than what was given, at this cost."]
        helped = "lower" if gain.above(0) else f"higher, so keep what was given: {METHOD} does" if self.lost else None
        told = f"KL is {helped}" if helped else "these prompts cannot tell the two apart"
        lines.append(
            f"Against what was given, at this cost, on prompts held out: {told}: {nats(before.kl.value)} before, "
            f"{nats(last.kl.value)} now, {nats(gain.value)} less ({interval(gain)})."
        )
        return lines

    def _remarks(self) -> list[str]:
        sides = "KL(setting || stock)" if self._withdrawal else "KL(stock || setting)"
        lines = [
            f"KL: {sides} of the next token in nats, the mean over the positions of the stock model's greedy "
            "answer; over prompts the mean with a 95 % bootstrap interval. tokens, FLOPs, KV: over those of the stock model.",
            f"{FOUND!r} was chosen on the prompts of the search, so only those held out tell what it is worth.",
        ]
        lines.append(f"`--method-json {METHOD}` hands what was found to `foveate run`, `eval`, `bench` and `serve`.")
        few = self.held_out[-1].kl.n
        if few == 1:
            return [
                *lines,
                "One prompt held out is too few for an interval (-), and nothing can be concluded: give more.",
            ]
        return [*lines, f"{few} prompts held out say little: give more."] if few < FEW else lines


def _shown(numbers: tuple[str, ...]) -> tuple[str, ...]:
    return numbers[:OMITTED] + numbers[OMITTED + 1 :]
