"""Questions about the same images: together they get the answers that each gets alone, at the same cost."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import ClassVar

import pytest
import torch

import foveate
from foveate import methods
from foveate.lab.asker import Asker
from foveate.lab.evaluation.bounds import Oracle, told
from foveate.lab.evaluation.questions import Prompt, of_benchmark
from foveate.lab.evaluation.reference import Batch, batches, load_subject
from foveate.lab.evaluation.sharing import Shared, answers, shared_by
from foveate.method import Host, Method, Site, Unit
from foveate.models import family_of
from foveate.runtime.signals.kind import KINDS as KINDS_OF_SIGNALS
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens
from foveate_reference import samples

KINDS: list[Method | None] = [
    None,
    foveate.Stride(keep=0.5),
    foveate.Stride(keep=0.5, positions="renumber"),
    foveate.ToMe(keep=0.5),
    foveate.ToMe(keep=0.5, positions="virtual"),
    foveate.VisionZip(keep=0.25) + foveate.V2Drop(keep=0.5),
    foveate.VTW(layer=3),
    foveate.IPCV(),
    foveate.FastV(layer=2),
    foveate.FastV(layer=3, positions="renumber"),
    Oracle(keep=0.25),
    foveate.ToMe(keep=0.8) + foveate.FastV(layer=3),
]


@pytest.fixture(scope="module")
def subject(smollm2: str) -> Asker:
    return load_subject(smollm2)


@pytest.fixture(scope="module")
def asked(subject: Asker) -> list[Prompt]:
    """Two scenes, the first with three questions of different length."""
    found = [subject.speech.sample(one) for one in samples(tasks=("color", "exist", "side", "count"), per_task=2)]
    prompts = of_benchmark(found, subject.side)
    views = {prompt.seen: [each for each in prompts if each.seen == prompt.seen] for prompt in prompts}
    most, *others = sorted(views.values(), key=len, reverse=True)
    assert len(most) >= 3
    return [*others[0][:1], *most[:3]]


def test_what_methods_share(subject: Asker) -> None:
    shared = {name: shared_by(cls(), subject.host) for name, cls in methods.list_methods().items() if name != "random"}
    assert shared_by(None, subject.host) == "prompt"
    assert {shared[name] for name in ("stride", "tome", "visionzip", "divprune", "v2drop", "vtw")} == {"prompt"}
    assert {shared[name] for name in ("fastv", "gsearch", "dycoke")} == {"tower"}
    assert {shared[name] for name in ("holitom", "vscan")} == {"nothing"}
    assert shared_by(foveate.ToMe() + foveate.FastV(), subject.host) == "nothing"
    assert shared_by(Oracle(), subject.host) == "tower"


@pytest.mark.parametrize("method", KINDS, ids=repr)
def test_together_as_alone(subject: Asker, asked: list[Prompt], method: Method | None) -> None:
    batch = Batch.of(subject, asked)
    shared = Shared.of(subject, asked, batch.inputs)
    assert shared.view.tolist() == [0, 1, 1, 1]
    assert shared.length > 100
    logits: list[torch.Tensor] = []
    hook = subject.model.lm_head.register_forward_hook(lambda _, __, out: logits.append(out[:, -1]))
    images: list[int] = []
    tower = subject.model.model.vision_tower.register_forward_hook(lambda _, args, out: images.append(len(out[0])))
    with told(asked), subject.carrying(method):
        alone = subject.answers(batch.inputs, {}, 2)
        before = torch.stack(logits)
        logits.clear(), images.clear()
        together = answers(subject, shared, method, 2)
    hook.remove(), tower.remove()
    # Two views, and one more for what the tower costs where its features are shared.
    assert sum(images) == {"prompt": 2, "tower": 3, "nothing": 4}[shared_by(method, subject.host)]
    torch.testing.assert_close(torch.stack(logits[-2:]), before, atol=2e-4, rtol=1e-4)
    for one, other in zip(alone, together, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        if one.cost is not None and other.cost is not None:
            assert astuple(one.cost) == pytest.approx(astuple(other.cost), rel=0.02)
    if method is not None:
        assert (logits[-1] - _stock(subject, batch)).abs().max() > 1e-3, "nothing was removed"


@pytest.mark.parametrize("name", ["reference", "reference-llava"])
def test_methods_that_leave_the_tower_as_it_is_share_its_features(name: str) -> None:
    """Each gets the answers and costs that it gets alone; the tower runs for the first two, and for those that act there."""
    subject = load_subject(name)
    prompts = batches(of_benchmark(samples(tasks=("color",), per_task=3), subject.side))[0]
    shown = Batch.of(subject, prompts)
    family = family_of(subject.model.config)
    tower = subject.model.get_submodule(f"{family.base}.{family.tower.module}")
    calls: list[int] = []
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    ran: dict[str, int] = {}
    for method in (
        None,
        foveate.FastV(layer=3),
        foveate.ToMe(),
        foveate.VTW(layer=4),
        foveate.Stride(),
        foveate.VScan(),
    ):
        alone = Batch.of(subject, prompts)
        with told(prompts), subject.carrying(method):
            calls.clear()
            together = shown.encoded.answers(subject, method, 1)
            ran[repr(method)] = len(calls)
            for one, other in zip(alone.encoded.answers(subject, method, 1), together, strict=True):
                assert (one.text, one.tokens) == (other.text, other.tokens)
                if one.cost is not None and other.cost is not None:
                    assert astuple(one.cost) == pytest.approx(astuple(other.cost))
    hook.remove()
    assert [*ran.values()] == [1, 1, 1, 1, 0, 1], ran


HEARD: list[torch.Tensor] = []


@dataclass(frozen=True)
class Asks(Method):
    """Hears a signal in the middle of the language model, and keeps everything."""

    kind: str = "keys"
    unit: ClassVar[Unit] = "none"

    def sites(self, host: Host) -> list[Site]:
        return [Site.decoder(3, signals=(self.kind,))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        HEARD.append(tokens.signals[self.kind].clone())
        return tokens.keep_mask(torch.ones(len(tokens), dtype=torch.bool))


def test_signals_say_whether_they_read_the_text(subject: Asker, asked: list[Prompt]) -> None:
    """Two questions about one image: what reads images alone is the same, and nothing else is."""
    one, other = (Batch.of(subject, [prompt]).inputs for prompt in asked[1:3])
    of_decoder = [name for name, kind in KINDS_OF_SIGNALS.items() if {"decoder"} & kind.places]
    assert len(of_decoder) > 8
    for name in of_decoder:
        HEARD.clear()
        with torch.inference_mode(), subject.carrying(Asks(kind=name)):
            for inputs in (one, other):
                subject.model(**inputs)
        first, second = HEARD
        same = first.shape == second.shape and torch.allclose(first, second, atol=1e-5)
        assert same != Signal(name).reads_text("decoder"), name


def _stock(subject: Asker, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        out = subject.model.generate(
            **batch.inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True, do_sample=False
        )
    return out.logits[-1]


def test_batches_by_view(asked: list[Prompt]) -> None:
    one, other = batches([asked[1], asked[0], asked[2], asked[3]], tokens=100, by_view=True)
    assert [len(one), len(other)] == [3, 1]
    (both,) = batches(asked, tokens=200, by_view=True)
    assert len(both) == 4
