"""Every method spends what it was given, measured on the reference models."""

from __future__ import annotations

from typing import Any

import pytest
from matrix import LLAVA

import foveate
from foveate import VTW, FastV, Method, ToMe
from foveate.dial import TOLERANCE
from foveate.errors import ConfigError, FoveateError, UnsupportedSiteError
from foveate.lab.asker import Asker
from foveate.lab.evaluation.bounds import AntiOracle, Oracle
from foveate.lab.evaluation.costs import meter
from foveate.lab.evaluation.plan import BOUNDS, Entry, Missed, contenders, entries, label
from foveate.lab.evaluation.questions import of_benchmark
from foveate.lab.evaluation.reference import Batch, answer
from foveate.lab.evaluation.request import Contest
from foveate_reference import ARCHITECTURES
from foveate_reference.data import Sample, samples

#: methods that save nothing before the first word of an answer
LATER = ("air", "dycoke")
#: methods that do nothing for single images
FRAMES = ("evs", "framefusion", "rlt")
#: methods that save something else than tokens or the tower's work
OTHERS = [name for name, cls in foveate.list_methods().items() if cls.unit not in ("tokens", "tower")]
DIALS = [*(name for name in foveate.list_methods() if name not in (*OTHERS, *LATER)), "oracle"]
#: how far off a dial in steps may be: VTW moves by whole layers; Downsample and the merger by whole rows and columns
STEPS = {
    ("vtw", "tokens"): 0.05,
    ("vtw", "flops"): 0.03,
    ("downsample", "tokens"): 0.06,
    ("downsample", "flops"): 0.12,
    ("oim", "flops"): 0.04,
    ("luvc", "flops"): 0.03,
}
#: the first method of those that act in the same places: the dial is one for all, and the contract has each one's `keep`
FIRST = {
    frozenset(site.at for site in cls().sites(LLAVA)): name
    for name, cls in reversed(foveate.list_methods().items())
    if name in DIALS
}
CHOSEN = {*FIRST.values(), *FRAMES, *(name for name, _ in STEPS), "ipcv", "oracle"}


@pytest.fixture(scope="module")
def asked() -> list[Sample]:
    return samples("test", tasks=("color",), per_task=1)


def planned(
    methods: dict[str, Method | None], budgets: tuple[float, ...], by: str, subject: Asker, asked: list[Sample]
) -> tuple[list[Entry], list[Missed]]:
    """`entries` at what methods spend on ``asked``."""
    measure = meter(subject, of_benchmark(asked, subject.side), 8, 1)
    return entries(methods, budgets, subject.host, lambda method: measure(method).share(by), lambda what, done: None)


def spent(subject: Asker, asked: list[Sample], method: Method, by: str) -> float:
    """Over that of the stock model, one question after another: what a run would report."""
    now = full = 0.0
    for sample in asked:
        cost = answer(subject, Batch.of(subject, of_benchmark([sample], subject.side)), method)[0].cost
        assert cost is not None
        now += cost.of(by)[0]
        full += cost.of(by)[1]
    return now / full


def leaves_to_the_matrix(subject: str = "", name: str = "", by: str = "", budget: float = 0.0) -> bool:
    """A method of each kind is set to a budget of tokens or of FLOPs, on the one model or the other, by turns."""
    turn = DIALS.index(name) if name else 0
    by_turns = (ARCHITECTURES[turn // 2 % 2], ("tokens", "flops")[turn % 2])
    return bool(name) and (name not in CHOSEN or (subject, by) != by_turns)


@pytest.mark.parametrize("name", DIALS)
@pytest.mark.parametrize(("by", "budget"), [("tokens", 0.3), ("flops", 0.8)])
def test_a_budget_is_met(subject: Asker, asked: list[Sample], name: str, by: str, budget: float) -> None:
    if name in FRAMES and not subject.host.frames:
        with pytest.raises(UnsupportedSiteError, match="which frames are of one video is known nowhere"):
            contenders(Contest(methods=(name,)), subject)
        return
    methods, _ = contenders(Contest(methods=(name,)), subject)
    plan, missed = planned(methods, (budget,), by, subject, asked)
    if (name, by) == ("ipcv", "tokens"):  # all tokens are back before the language model: it saves FLOPs only
        assert [(m.label, m.budget, m.closest) for m in missed] == [("ipcv", budget, 1.0)]
        return
    assert not missed
    assert [entry.label for entry in plan] == ["dense", name]
    method = plan[1].method
    assert method is not None
    assert abs(spent(subject, asked, method, by) - budget) <= STEPS.get((name, by), TOLERANCE) + 1e-6


def test_a_budget_is_that_of_all_layouts_together(qwen: Asker) -> None:
    """Two images for each single one: neither kind alone costs 70 % then, but both together do."""
    mixed = [*samples(tasks=("pair",), per_task=2), *samples(tasks=("color",), per_task=1)]
    plan, _ = planned({"dense": None, "tome": ToMe()}, (0.7,), "flops", qwen, mixed)
    method = plan[1].method
    assert method is not None
    assert abs(spent(qwen, mixed, method, "flops") - 0.7) <= TOLERANCE


def test_two_budgets_are_two_names() -> None:
    """Files of answers are called so."""
    one, other = (str(Entry("stride", foveate.Stride(), budget)) for budget in (0.333, 0.3333))
    assert (one, other) == ("stride at 0.333", "stride at 0.3333")


def test_out_of_reach(qwen: Asker, asked: list[Sample]) -> None:
    late = FastV(layer=4)
    plan, missed = planned({"dense": None, "fastv": late, "vtw": VTW()}, (0.95, 0.5, 0.1), "tokens", qwen, asked)
    assert [str(entry) for entry in plan] == [
        "dense",
        "fastv at 0.95",
        "fastv at 0.5",
        "vtw at 0.95",
        "vtw at 0.5",
        "vtw at 0.1",
    ]
    assert [(m.label, m.budget, round(m.closest, 6)) for m in missed] == [("fastv", 0.1, 0.4)]


def test_what_has_no_dial_is_measured_once(qwen: Asker, asked: list[Sample]) -> None:
    methods, _ = contenders(Contest(methods=("blind", "antioracle")), qwen)
    plan, missed = planned(methods, (0.5, 0.1), "tokens", qwen, asked)
    assert [(entry.label, entry.method, entry.budget) for entry in plan] == [
        ("dense", None, None),
        ("blind", None, None),
        ("antioracle", AntiOracle(), None),
    ]
    assert not missed


def test_as_is(qwen: Asker, asked: list[Sample]) -> None:
    """No budget, so a dial says where it is; two settings of a method are two."""
    described = (
        '{"method": "fastv", "keep": 0.25}',
        '{"method": "fastv", "schedule": [[3, 0.5], [5, 0.2], [7, 0.1], [8, 0.1], [9, 0]]}',
    )
    methods, _ = contenders(Contest(methods=("vtw",), described=described, as_is=True), qwen)
    plan, missed = planned(methods, (), "tokens", qwen, asked)
    assert not missed
    assert [entry.budget for entry in plan] == [None] * 4
    assert [entry.label for entry in plan[:3]] == ["dense", "vtw", "fastv(keep=0.25)"]
    with pytest.raises(FoveateError, match="fastv is given twice"):
        contenders(Contest(methods=("fastv",), described=described[:1]), qwen)
    assert plan[3].label.startswith("fastv(schedule=#"), "a long schedule does not fill the table"
    assert plan[3].method == FastV(schedule=((3, 0.5), (5, 0.2), (7, 0.1), (8, 0.1), (9, 0.0)))


def test_a_budget_of_kv(qwen: Asker, asked: list[Sample]) -> None:
    plan, _ = planned({"dense": None, "fastv": FastV(layer=3)}, (0.6,), "kv", qwen, asked)
    method = plan[1].method
    assert method is not None
    assert spent(qwen, asked, method, "kv") == pytest.approx(0.6, abs=TOLERANCE)


def test_by_default_all_that_fits(subject: Asker) -> None:
    methods, notes = contenders(Contest(), subject)
    assert list(methods)[:4] == list(BOUNDS)
    videos = {"dycoke"} if subject.host.frames else set()
    learned = {name for name, cls in foveate.list_methods().items() if cls.modules is not Method.modules}
    fit = set(DIALS) - (set() if subject.host.frames else set(FRAMES)) - learned
    assert set(methods) == {"dense", "blind", "antioracle", *fit, *videos, *(set(OTHERS) - set(LATER) - learned)}
    assert learned
    for name in learned:  # the parts are random until they are trained
        assert any(note.startswith(f"left out: {name} has learned parts") for note in notes)
    for name in LATER:
        said = [note for note in notes if note.startswith(f"left out: {name} acts on the tokens that follow")]
        assert len(said) == (name not in videos)


def test_names_options_and_labels(qwen: Asker) -> None:
    def labels(*names: str, **other: Any) -> list[str]:
        return list(contenders(Contest(methods=names, **other), qwen)[0])

    assert labels("fastv") == ["dense", "fastv"]
    assert labels("fastv", "fastv", "dense") == ["dense", "fastv"]
    assert labels("fastv", options=("layer=4",)) == ["dense", "fastv(layer=4)"]
    assert labels("fastv", "oracle", options=("layer=4",)) == ["dense", "fastv(layer=4)", "oracle"]
    assert labels("fastv", "stride", options=("fastv.layer=4",)) == ["dense", "fastv(layer=4)", "stride"]
    assert labels("tome+fastv", options=("fastv.layer=4",)) == ["dense", "tome+fastv(layer=4)"]
    assert labels("tome", described=('{"method": "fastv", "layer": 3, "keep": 0.5}',)) == [
        "dense",
        "tome",
        "fastv(layer=3)",
    ]
    assert labels("oracle", "tome+fastv", positions="renumber") == [
        "dense",
        "oracle(positions=renumber)",
        "tome(positions=renumber)+fastv(positions=renumber)",
    ]
    with pytest.raises(FoveateError, match="'layer=4' belongs to no method"):
        labels("fastv", "stride", options=("layer=4",))
    with pytest.raises(FoveateError, match="'layer=4' belongs to a method"):
        labels(options=("layer=4",))
    with pytest.raises(FoveateError, match="dycoke acts on the tokens that follow"):
        labels("dycoke", options=("ratio=1.0",))
    with pytest.raises(ConfigError, match="FastV has no option 'layr'"):
        labels("fastv", options=("layr=4",))


def test_labels_leave_the_dial_out(qwen: Asker) -> None:
    assert label(FastV(ratio=0.123), qwen.host) == "fastv"
    assert label(VTW(layer=2), qwen.host) == "vtw"
    assert label(Oracle(keep=0.9), qwen.host) == "oracle"
