"""A method in training: the same declaration, with a choice that gradients go through.

`Relaxed` is attached in place of a method while it is trained (`foveate.learning` says how). What the method says in a forward
is on its `Tape`, from which losses are computed.
"""

from __future__ import annotations

import copy
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.answers import Answer, Append, Remember
from foveate.learning import Noted, Relaxation, Stage, keep_all
from foveate.method import Host, Method, Site
from foveate.ops.segments import offsets, ranges
from foveate.signal import Signal
from foveate.tokens import Parked, Tokens
from foveate.units import Unit


@dataclass(eq=False)
class Tape:
    """What is said in one forward.

    Attributes:
        notes: what the method chose, site after site.
        target: what its scores should have been, where it says that itself.
        answered: text tokens of each sample from its first answer on, which the method must not read: where it is used, they
            are not written yet. (): it may read all.
    """

    notes: list[Noted] = field(default_factory=list)
    target: Tensor | None = None
    answered: tuple[int, ...] = ()

    def begin(self, answered: Sequence[int] = ()) -> None:
        """Forget the last forward."""
        self.notes, self.target, self.answered = [], None, tuple(answered)


@dataclass(frozen=True, eq=False)
class Relaxed(Method):
    """A relaxed method keeps all tokens: those that the method would drop fade, and those that it would keep stay as they are.

    What has no relaxation, and whatever is no reduction, is as in the method.

    Attributes:
        method: in training.
        made: its learned parts, which are the same ones at every stage; None: it has none.
        stage: in which it is trained now.
        lessons_at: sites of training alone.
        tape: what was said in the last forward.
    """

    method: Method = field(default_factory=Method)
    made: nn.ModuleDict | None = None
    stage: Stage = field(default_factory=lambda: Stage((), 0.0))
    lessons_at: tuple[Site, ...] = ()
    tape: Tape = field(default_factory=Tape)

    training_free: ClassVar[bool] = False
    unit: ClassVar[Unit] = "none"

    @classmethod
    def of(cls, method: Method, made: nn.ModuleDict | None, stage: Stage, host: Host, tape: Tape) -> Relaxed:
        """Return a method as a stage trains it, with the learned parts that are trained."""
        own = copy.copy(method)
        if made is not None:
            vars(own)["_learned"] = made
        lessons = tuple(method.lessons(host)) if stage.target == "method" else ()
        return cls(own, made, stage, lessons, tape, positions=method.positions)

    def __repr__(self) -> str:
        return f"{self.method!r} in training"

    @property
    def idle(self) -> bool:
        return self.method.idle

    @property
    def temporal(self) -> bool:
        return self.method.temporal

    def modules(self, host: Host) -> nn.ModuleDict | None:
        return self.made

    def sites(self, host: Host) -> Sequence[Site]:
        return [*self.method.sites(host), *self.lessons_at]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        tokens = replace(tokens, scope=self.method.scope, pooled=self.method.pooled)
        if site in self.lessons_at:
            self.tape.target = self.method.target(tokens, site).detach()
            return keep_all(tokens)
        if self.tape.answered and tokens.text_counts:
            tokens = before_answers(tokens, self.tape.answered)
        relaxation = self.method.relaxation
        if relaxation is not None and site.action == "append":
            return self._append(relaxation, self.method.answer(tokens, site), tokens, site)
        if relaxation is None or site.action != "reduce" or site.at == "cache":
            return self.method.answer(tokens, site)
        score = self.method.score(tokens, site)
        chosen, gates = tokens.keep_best(score, site), relaxation.gates(score, tokens, site)
        hard = torch.zeros_like(gates).index_fill(0, chosen.keep, 1.0)
        self.tape.notes.append(Noted(score, gates, hard, tokens.counts, chosen.counts, chosen.counts))
        return relaxation.apply(gates, tokens) if self.stage.soft else keep_all(tokens)

    def _append(self, relaxation: Relaxation, answer: Answer, tokens: Tokens, site: Site) -> Answer:
        """All tokens that the method may append: those that it would not fade."""
        if not isinstance(answer, Append) or answer.score is None or answer.counts is None:
            return answer
        gates, hard = answer.score.float().sigmoid(), (answer.score >= 0).float()
        kept = tuple(int(part.sum()) for part in hard.split(answer.counts))
        self.tape.notes.append(Noted(answer.score, gates, hard, answer.counts, kept, tokens.budget(site)))
        return relaxation.append(gates, answer) if self.stage.soft else replace(answer, score=None)

    # -- as in the method ---------------------------------------------------------------------------------------------

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        return self.method.restore(tokens, parked, site)

    def remember(self, tokens: Tokens, site: Site) -> Remember:
        return self.method.remember(tokens, site)

    def inject(self, x: Tensor, memory: Tensor, site: Site) -> Tensor:
        return self.method.inject(x, memory, site)

    def follow(self, state: MutableMapping[str, Any], rows: Tensor | None) -> None:
        self.method.follow(state, rows)


def before_answers(tokens: Tokens, answered: Sequence[int]) -> Tokens:
    """The same without the last ``answered[b]`` text tokens of each sample, in whatever is of the text."""
    counts = tokens.text_counts
    left = tuple(max(0, n - gone) for n, gone in zip(counts, answered, strict=True))
    device = tokens.index.device
    stays = ranges(offsets(counts)[:-1], left, device)
    number = torch.full((sum(counts),), -1, device=device).index_copy(0, stays, torch.arange(len(stays), device=device))

    def shown(signal: Signal, value: Tensor) -> Tensor:
        if signal.kind == "text_place":  # of the tokens that are shown
            return torch.where(value < 0, -1, number[value.clamp(min=0)]) if len(number) else value
        of_text = signal.of == "text" or signal.kind in ("text", "text_ids", "text_pass")
        return value[stays.to(value.device)] if of_text else value

    signals = {signal: shown(signal, value) for signal, value in tokens.signals.items()}
    return replace(tokens, signals=signals, text_counts=left)
