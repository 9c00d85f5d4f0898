"""What share of the tokens a training step keeps: a list of stages, callbacks that change the method and tell the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foveate.errors import ConfigError
from foveate.handle import Handle, compress
from foveate.method import Method
from foveate.schedule import check_ratio

NAMES = ("hard-to-easy", "easy-to-hard", "constant")


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
        """A word of `NAMES`, which ends at ``target``, or the stages themselves, as ``0.1,0.2,0.3``.

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
                f"curriculum {text!r}: choose {', '.join(NAMES)}, or give the shares kept, such as 0.1,0.2,0.3"
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


class Compression(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Attaches a method to the model in training, and another one when the curriculum says so.

    What is attached follows from the step alone, so a run that goes on from a checkpoint goes on right.

    Attributes:
        stages: step at which each method was attached, and its keep.
    """

    def __init__(self, model: nn.Module, method: Callable[[float], Method], curriculum: Curriculum) -> None:
        self.model, self.method, self.curriculum = model, method, curriculum
        self.stages: list[tuple[int, float]] = []
        self._handle: Handle | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first step."""
        if state.max_steps < len(self.curriculum.keeps):
            raise ConfigError(
                f"{state.max_steps} steps are too few for the {len(self.curriculum.keeps)} stages of the curriculum: train "
                "longer, or choose `constant`"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the batches of an optimiser step go forward."""
        keep = self.curriculum.keep_at(state.global_step, state.max_steps)
        if self._handle is None or self.stages[-1][1] != keep:
            self.remove()
            self._handle = compress(self.model, self.method(keep))
            self.stages.append((state.global_step, keep))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The model is left without hooks."""
        self.remove()

    def remove(self) -> None:
        """Take the method off. Calling it twice does nothing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


class Progress(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """A line whenever the trainer logs a loss."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Also asked for the summary at the end, which has no loss."""
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None:
            self.tell(f"step {state.global_step} of {state.max_steps}, loss {float(loss):.3f}")
