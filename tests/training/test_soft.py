"""Methods in training, on tiny models: gates, gradients, what is read of an answer, what stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import stand_ins
import tiny
import torch
from calls import ROWS, close, text_of
from snapshot import state_of
from torch import Tensor

import foveate
from foveate import (
    AdaptiveVoCo,
    CoViPAL,
    Host,
    Method,
    QueCC,
    RelevanceNet,
    Site,
    SkipVision,
    Tokens,
    VisionSelector,
    VisToG,
    VoCoLLaMA,
)
from foveate.errors import ConfigError, UnsupportedModelError
from foveate.handle import host_of
from foveate.learning import Ramp, Relaxation, Stage
from foveate.losses import Answer, Imitate, Loss
from foveate.pruners import EntryPruner
from foveate.training.pupil import Pupil
from foveate.training.relaxed import Relaxed, Tape

STAGE = Stage((Answer(),), 1e-3)


@dataclass(frozen=True)
class Hard(Relaxation):
    """Gates that are the hard choice."""

    def gates(self, score: Tensor, tokens: Tokens, site: Site) -> Tensor:
        return torch.zeros_like(score).index_fill(0, tokens.keep_best(score, site).keep, 1.0)


@dataclass(frozen=True)
class Pattern(EntryPruner):
    """A choice by place."""

    relaxation: ClassVar[Relaxation] = Hard(acts_on="keys")
    stages: ClassVar[tuple[Stage, ...]] = (STAGE,)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return (tokens.index * 7 % 5).float()


@dataclass(frozen=True)
class Later(Pattern):
    """The same before a deeper layer."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.decoder(2, self.share)]


def relaxed(model: Any, method: Method, tape: Tape | None = None) -> Relaxed:
    return Relaxed.of(method, None, method.stages[0], host_of(model), tape or Tape())


def labelled(family: str, batch: dict[str, Tensor], last: int = 2) -> dict[str, Tensor]:
    """The last words of each row are the answer; rows are padded on the left."""
    labels = batch["input_ids"].clone()
    labels[:, :-last] = -100
    return {**batch, "labels": labels}


def pupil(model: Any, family: str, method: Method) -> Pupil:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        parts = method.modules(host_of(model))
    return Pupil(model.requires_grad_(False), parts, host_of(model), [tiny.IMAGE_TOKEN[family]])


@pytest.mark.parametrize("family", tiny.WHOLE)
@pytest.mark.parametrize("method", [Pattern(keep=0.4), Later(keep=0.4)])
def test_a_hard_gate_on_keys_is_removal(family: str, method: Method) -> None:
    """In a ragged batch with a row of text alone, padded on either side, with sdpa and eager attention; of the text."""
    for impl, side in (("sdpa", "left"), ("sdpa", "right"), ("eager", "left")):
        model = tiny.model(family, impl)
        batch = tiny.inputs(family, ROWS[family], padding_side=side)
        text = text_of(family, batch)
        with torch.no_grad(), foveate.compress(model, method):
            expected = model(**batch).logits[text]
        with torch.no_grad(), foveate.compress(model, relaxed(model, method)):
            close(model(**batch).logits[text], expected)


def test_gates_that_a_kernel_would_ignore_are_refused() -> None:
    batch = tiny.inputs("llava", ROWS["llava"])
    for model, around in (
        (stand_ins.with_flash("llava"), stand_ins.flash_attention()),
        (stand_ins.with_flex("llava"), stand_ins.uncompiled()),
    ):
        refused = pytest.raises(UnsupportedModelError, match="takes no mask to add the logarithm of a gate to")
        with torch.no_grad(), around, foveate.compress(model, relaxed(model, Pattern())), refused:
            model(**batch)
    hybrid = tiny.model("qwen3_5")
    refused = pytest.raises(UnsupportedModelError, match="a layer that carries a state has no logits to add")
    with foveate.compress(hybrid, relaxed(hybrid, Pattern())), refused:
        hybrid(**tiny.inputs("qwen3_5", ROWS["qwen3_5"]))


def test_a_bias_is_for_the_language_model() -> None:
    @dataclass(frozen=True)
    class InTower(Pattern):
        def sites(self, host: Host) -> Sequence[Site]:
            return [Site.tower(1, 0.5)]

    model = tiny.model("llava")
    with foveate.compress(model, relaxed(model, InTower())), pytest.raises(ConfigError, match="says a bias"):
        model(**tiny.inputs("llava", [[1, "image", 2]]))


LEARNED = [
    (VisionSelector(keep=0.5), 0),
    (CoViPAL(), 0),
    (CoViPAL(), 1),
    (RelevanceNet(), 0),
    (SkipVision(), 0),
    (QueCC(), 0),
    (VoCoLLaMA(keep=0.2), 0),
    (AdaptiveVoCo(keep=0.2), 0),
    (VisToG(keep=0.25), 0),
]


@pytest.mark.parametrize(("method", "number"), LEARNED)
def test_only_what_is_declared_learns(method: Method, number: int) -> None:
    """Every learned part has a gradient; the model has none, and is bit-equal after a step; without the method it is stock."""
    family = "qwen2_5_vl"
    model = tiny.model(family, "eager", fresh=True)
    batch = tiny.inputs(family, ROWS[family])
    with torch.no_grad():
        model(**batch, output_attentions=True)  # for which stock code puts hooks of its own
    before = state_of(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    stock = tiny.text_logits(model, batch)
    trains = pupil(model, family, method)
    trains.enter(method, method.stages[number])
    optimiser = torch.optim.Adam(trains.trained().values(), lr=1e-3)
    own = {name: value.clone() for name, value in trains.parts.state_dict().items()}
    trains.train()(**labelled(family, batch))["loss"].backward()
    with_gradient = {name for name, parameter in trains.named_parameters() if parameter.grad is not None}
    assert with_gradient == trains.trained().keys() == {f"parts.{name}" for name in own}
    assert all(bool(parameter.grad.any()) for name, parameter in trains.trained().items() if "bias" not in name)
    optimiser.step()
    changed = {name for name, value in trains.parts.state_dict().items() if not torch.equal(value, own[name])}
    assert {name for name in own if "weight" in name} <= changed
    said = trains.said()
    soft = {"agreement"} if method.relaxation is not None else set()
    assert set(said) == {loss.name() for loss in method.stages[number].losses} | soft
    assert 0 < said.get("agreement", 1) <= 1
    trains.leave()
    model.eval()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(tiny.text_logits(model, batch), stock)
    assert state_of(model) == before


@pytest.mark.parametrize("method", [VisionSelector(keep=0.5), CoViPAL(), RelevanceNet()])
def test_a_batch_is_its_rows_and_knows_no_answer(method: Method) -> None:
    """Scores in training are those of each row alone, and of the same prompts with other answers; without an image nothing
    is said, and still there is a loss to go backward from."""
    family = "llava"
    model = tiny.model(family, "eager", fresh=True)
    trains = pupil(model, family, method)
    trains.enter(method, method.stages[0])
    tape = trains._tape

    def scores(batch: dict[str, Tensor]) -> Tensor:
        trains(**batch)
        return torch.cat([note.score for note in tape.notes])

    rows: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7], [6]]
    batch = labelled(family, tiny.inputs(family, rows))
    together = scores(batch)
    alone = [scores(labelled(family, tiny.inputs(family, rows, only=i))) for i in range(2)]
    close(together, torch.cat(alone))
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, -2:] = batch["input_ids"][:, -2:].roll(1, 0)
    other["labels"] = torch.where(batch["labels"] == -100, -100, other["input_ids"])
    close(scores(other), together)
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    trains(**labelled(family, tiny.inputs(family, rows, only=2)))["loss"].backward()
    assert tape.notes == []
    trains.leave()


def test_the_teacher_is_the_stock_model() -> None:
    """With nothing removed there is nothing to imitate; with half of the tokens there is."""
    family, model = "llava", tiny.model("llava", fresh=True)
    batch = labelled(family, tiny.inputs(family, [[3, "image", 5]]))
    found = {}
    for keep in (1.0, 0.3):
        method = Pattern(keep=keep)
        trains = pupil(model, family, method)
        trains.enter(method, Stage((Imitate(),), 1e-3))
        found[keep] = float(trains(**batch)["loss"])
        trains.leave()
    assert found[1.0] == pytest.approx(0, abs=1e-6)
    assert found[0.3] > 1e-4


def test_weights_change_while_a_stage_lasts() -> None:
    @dataclass(frozen=True)
    class One(Loss):
        def __call__(self, step: Any) -> Tensor:
            return step.logits.new_ones(())

    family, model, method = "llava", tiny.model("llava", fresh=True), VisionSelector()
    trains = pupil(model, family, method)
    trains.enter(method, Stage((One(Ramp(0.5, 2.5)),), 1e-3))
    batch = labelled(family, tiny.inputs(family, [[3, "image", 5]]))
    for progress in (0.0, 0.25, 1.0):
        trains.progress = progress
        assert float(trains(**batch)["loss"].detach()) == pytest.approx(0.5 + 2 * progress)
    trains.leave()
