"""What share of the tokens a training step keeps, and the callbacks that walk through stages and tell the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foveate.errors import ConfigError
from foveate.method import Method
from foveate.schedule import check_ratio
from foveate.training.pupil import Pupil
from foveate.training.recipe import CURRICULA

LOGGED = ("grad_norm", "learning_rate", "epoch")  # by transformers, beside the loss


@dataclass(frozen=True)
class Curriculum:
    """Equally long stages.

    Attributes:
        keeps: share of the tokens that each stage keeps; the last one is what is trained for.
    """

    keeps: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.keeps:
            raise ConfigError("a curriculum needs at least one stage")
        for keep in self.keeps:
            check_ratio("curriculum", keep)

    @classmethod
    def parse(cls, text: str, target: float) -> Curriculum:
        """A word of `CURRICULA`, which ends at ``target``, or the stages themselves, as ``0.1,0.2,0.3``.

        ``hard-to-easy``, the paper's "reverse curriculum" as we read it, keeps a third of the target, two thirds, and the
        target: 88.9, 77.8 and 66.7 % removed. ``easy-to-hard`` begins with all tokens.
        """
        if text == "hard-to-easy":
            return cls((target / 3, target * 2 / 3, target))
        if text == "easy-to-hard":
            return cls((1.0, (1 + target) / 2, target))
        if text == "constant":
            return cls((target,))
        try:
            keeps = tuple(float(word) for word in text.split(","))
        except ValueError:
            raise ConfigError(
                f"curriculum {text!r}: choose {', '.join(CURRICULA)}, or give the shares kept, such as 0.1,0.2,0.3"
            ) from None
        found = cls(keeps)
        if abs(keeps[-1] - target) > 0.005:
            raise ConfigError(
                f"curriculum {text!r} ends at {keeps[-1]}: end it with what is trained for, keep={target:.4g}"
            )
        return found

    def keep_at(self, step: int, steps: int) -> float:
        """Return the share that step ``step`` of ``steps`` keeps, counted from 0."""
        stage = step * len(self.keeps) // max(1, steps)
        return self.keeps[min(stage, len(self.keeps) - 1)]

    def method_at(self, method: Method, keep: float) -> Method:
        """Return the method as it is while ``keep`` is kept: where that never changes, with the options that it has."""
        return method if len(self.keeps) == 1 else method.with_keep(keep)


class Stages(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Walks through the stages of a method, and through what a curriculum keeps.

    Where it is follows from the step alone, so a run that goes on from a checkpoint goes on right.

    Attributes:
        begun: step at which each stage began, and its keep.
    """

    def __init__(self, pupil: Pupil, method: Method, curriculum: Curriculum) -> None:
        self.pupil, self.method, self.curriculum = pupil, method, curriculum
        self.begun: list[tuple[int, float]] = []
        self._now: tuple[int, float] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first step."""
        for number, of in (
            (len(self.curriculum.keeps), "the curriculum"),
            (len(self.method.stages), self.method.name()),
        ):
            if state.max_steps < number:
                raise ConfigError(
                    f"{state.max_steps} steps are too few for the {number} stages of {of}: train longer"
                    + (", or choose `constant`" if of == "the curriculum" else "")
                )
        self.pupil.others = 1.0 / args.gradient_accumulation_steps / max(1, args.world_size)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the batches of an optimiser step go forward."""
        step, steps, stages = state.global_step, state.max_steps, self.method.stages
        number, keep = min(step * len(stages) // steps, len(stages) - 1), self.curriculum.keep_at(step, steps)
        first, end = (-(-steps * each // len(stages)) for each in (number, number + 1))
        self.pupil.progress = (step - first) / max(1, end - first)
        if self._now != (number, keep):
            self.pupil.enter(self.curriculum.method_at(self.method, keep), stages[number])
            self._now = number, keep
            self.begun.append((step, keep))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The model is left without hooks."""
        self.pupil.leave()


class Progress(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """A line whenever the trainer logs a loss."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Also asked for the summary at the end, which has no loss."""
        logs = kwargs.get("logs") or {}
        if logs.get("loss") is None or not state.is_world_process_zero:
            return
        own = {name: value for name, value in logs.items() if name != "loss" and name not in LOGGED}
        shown = {"loss": logs["loss"], **(own if len(own) > 1 else {})}  # a single one is the loss
        said = ", ".join(f"{name} {float(value):.3f}" for name, value in shown.items())
        self.tell(f"step {state.global_step} of {state.max_steps}, {said}")
