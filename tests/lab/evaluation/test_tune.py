"""``foveate tune`` without a process: what is found, what goes on, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from foveate import IPCV, VTW, DivPrune, FastV, Method, compress, method_from_dict
from foveate.lab.asker import Asker
from foveate.lab.evaluation import questions
from foveate.lab.evaluation.fidelity import measuring
from foveate.lab.evaluation.fidelity.table import kls
from foveate.lab.evaluation.forced import asked, hear
from foveate.lab.evaluation.questions import Prompt, drawn, of_benchmark
from foveate.lab.evaluation.report import markdown, write
from foveate.lab.evaluation.tune.request import Tune
from foveate.lab.evaluation.tune.search import eta
from foveate.lab.evaluation.tune.tuning import asking, tune
from foveate.lab.terminal import CommandError
from foveate_reference.data import samples


def request(out: Path, method: Method | None = None, **changes: Any) -> Tune:
    usual: dict[str, Any] = dict(max_kl=0.1, samples=6, new_tokens=1, batch_size=4)
    return Tune(out=out, described=json.dumps((method or VTW()).to_dict()), **{**usual, **changes})


@pytest.fixture(autouse=True)
def one_model(qwen: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one task: what tokens of documents cost is for others to measure."""
    monkeypatch.setattr(measuring, "load_asker", lambda *about: qwen)
    monkeypatch.setattr(questions, "samples_of", lambda request, seed, speech: colours())


def colours() -> list[Any]:
    return samples("validation", tasks=("color", "where"), per_task=3)


def silent(what: str, done: float) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def mean_kl(subject: Asker, prompts: list[Prompt], method: Method) -> float:
    return float(
        kls([each for prompt in prompts for each in hear(subject.model, method, asked(subject, [prompt], 1))]).mean()
    )


def test_the_layer_of_vtw(tmp_path: Path, qwen: Asker) -> None:
    found = tune(request(tmp_path), silent)
    write(found)
    prompts = drawn(of_benchmark(colours(), 0), 6, 0)
    kl = [mean_kl(qwen, prompts[3:], VTW(layer=layer)) for layer in range(10)]
    layer = next(layer for layer in range(10) if kl[layer] <= 0.1)
    assert found.method.sites(qwen.host) == VTW(layer=layer).sites(qwen.host)
    written = json.loads((tmp_path / "method.json").read_text())
    assert method_from_dict(written) == found.method
    given, last = found.held_out
    assert (given.label, last.label) == ("given", "found")
    assert last.kl.value == pytest.approx(mean_kl(qwen, prompts[:3], found.method), rel=1e-2, abs=1e-6)
    assert (last.kl.n, found.calibration[-1].kl.n, found.gain) == (3, 3, None)
    assert "On prompts held out its KL is" in (tmp_path / "results.md").read_text()


def test_the_layer_of_vtw_by_its_authors_rule(tmp_path: Path, qwen: Asker) -> None:
    """By a plain loop over layers: the logits behind the prompt, the divergence of one prompt after the other, their mean."""
    prompts = drawn(of_benchmark(colours(), 0), 4, 0)
    inputs = [qwen.prepare([prompt.chat()]) for prompt in prompts]

    @torch.no_grad()
    def probabilities(inputs: Any) -> list[float]:
        found: list[float] = qwen.model(**inputs).logits[0, -1].double().softmax(-1).tolist()
        return found

    stock = [probabilities(each) for each in inputs]

    def kl(layer: int, prompts: tuple[int, int]) -> float:
        with compress(qwen.model, VTW(layer=layer)):
            pairs = [zip(probabilities(inputs[i]), stock[i], strict=True) for i in prompts]
        return fmean(sum(q * math.log(q / p) for q, p in pair if q) for pair in pairs)

    curve = {layer: kl(layer, (2, 3)) for layer in (5, 6, 7)}
    limit = 1.01 * min(curve[6], curve[7])
    wanted = min(layer for layer in curve if curve[layer] <= limit)
    assert wanted in (6, 7)
    found = tune(request(tmp_path / "found", VTW(keep=0.1), search="withdrawal", max_kl=limit, samples=4), silent)
    assert (found.method, found.search, found.trials) == (VTW(layer=wanted), "withdrawal", wanted - 4)
    calibrated, held_out = found.calibration[-1], found.held_out[-1]
    assert calibrated.first_kl.value == pytest.approx(curve[wanted], rel=1e-2, abs=1e-6)
    assert held_out.first_kl.value == pytest.approx(kl(wanted, (0, 1)), rel=1e-2, abs=1e-6)
    assert "On prompts held out its KL of the first token is" in found.verdict()[0]
    assert "KL(setting || stock)" in markdown(found.report())
    with pytest.raises(
        CommandError, match=r"no layer that was tried, from layer 5 on, has a KL of the first token within 1e-09 nats"
    ):
        tune(request(tmp_path / "none", search="withdrawal", max_kl=1e-9, trials=1, samples=2), silent)


def test_the_limits_of_the_authors_of_vtw() -> None:
    """By the names of their checkpoints, as they and as others call them; of all other models one."""
    for name, limit in (
        ("liuhaotian/llava-v1.5-13b", 0.0005),
        ("llava-hf/llava-1.5-13b-hf", 0.0005),
        ("liuhaotian/llava-v1.5-7b", 0.003),
        ("/models/LLaVA-v1.6-vicuna-7b-hf", 0.0001),
        ("llava-hf/llava-v1.6-mistral-7b-hf", 0.003),
        ("reference", 0.003),
    ):
        assert eta(name) == limit


def test_a_schedule_at_a_budget(tmp_path: Path) -> None:
    wanted = request(tmp_path, method=FastV(), max_kl=None, budget=0.5, by="tokens")
    found = tune(wanted, silent)
    assert found.search == "sigmoid"
    assert isinstance(found.method, FastV)
    assert found.method.schedule
    for line in found.held_out:
        assert line.spent.tokens == pytest.approx(0.5, abs=0.02)
    before, now = found.calibration
    assert now.kl.value <= before.kl.value, "what was given is one of those judged"
    assert found.gain is not None
    held_before, held_now = found.held_out
    assert found.gain.value == pytest.approx(held_before.kl.value - held_now.kl.value)


def test_an_interrupted_search_ends_like_any_other(tmp_path: Path) -> None:
    wanted = request(tmp_path / "whole", method=FastV(layer=3), max_kl=0.05, search="greedy", trials=5)
    whole = tune(wanted, silent)
    write(whole)
    assert whole.exhausted
    assert whole.trials == 5

    def stop(what: str, done: float) -> None:
        if what.startswith("trial 4"):
            raise KeyboardInterrupt

    again = replace(wanted, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        tune(again, stop)
    assert len((tmp_path / "again" / "trials.jsonl").read_text().splitlines()) == 1 + 3
    write(tune(again, silent))
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    for changes in ({"max_kl": 0.5}, {"seed": 3}, {"described": json.dumps(FastV(layer=4).to_dict())}):
        with pytest.raises(CommandError, match="is of another run"):
            tune(replace(again, **changes), silent)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_options_at_a_budget(tmp_path: Path) -> None:
    """IPCV saves in the tower alone: its options are moved, its share set anew each time."""
    wanted = request(tmp_path, method=IPCV(), max_kl=None, budget=0.9, trials=4, samples=4)
    found = tune(wanted, silent)
    assert (found.search, found.trials, found.exhausted) == ("options", 4, True)
    trials = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()[1:]]
    spent = [trial["cost"]["flops"] / trial["cost"]["full_flops"] for trial in trials]
    assert spent == pytest.approx([0.9] * 4, abs=0.03)
    assert len({trial["id"] for trial in trials}) == 4
    assert method_from_dict(min(trials, key=lambda trial: trial["kl"])["id"]) == found.method


def test_the_test_split_is_not_for_tuning(tmp_path: Path) -> None:
    assert asking(request(tmp_path)).split == "validation"


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no goal": ({"max_kl": None}, "either --max-kl 0.01"),
    "two goals": ({"budget": 0.5}, "either --max-kl 0.01"),
    "KL of nothing": ({"max_kl": 0.0}, "--max-kl 0.0: give nats above 0"),
    "budget of all": ({"max_kl": None, "budget": 1.0}, "--budget 1.0: give a share"),
    "unknown cost": ({"by": "seconds"}, "choose tokens, flops, kv"),
    "unknown search": ({"search": "best"}, "choose auto, dial"),
    "search of the other goal": ({"search": "sigmoid"}, "does not look for --max-kl: choose dial, greedy"),
    "no trials": ({"trials": 0}, "--trials 0"),
    "nothing held out": ({"held_out": 0.0}, "--held-out 0.0"),
    "one prompt": ({"samples": 1}, "one side has none: give more prompts"),
    "no schedule": ({"search": "greedy"}, "vtw follows no schedule"),
    "no layers": ({"search": "layers"}, "vtw has no layers to rank"),
    "nothing withdrawn": (
        {"search": "withdrawal", "method": FastV()},
        "--search withdrawal is the rule of vtw's authors for its layer: fastv has none",
    ),
    "withdrawal at a budget": (
        {"search": "withdrawal", "max_kl": None, "budget": 0.5},
        "--search withdrawal does not look for --budget",
    ),
    "withdrawal with two goals": ({"search": "withdrawal", "budget": 0.5}, "either --max-kl 0.01"),
    "too strict": (
        {"max_kl": 1e-12, "trials": 1},
        "no setting of vtw that was tried has a KL within 1e-12: the least was",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tmp_path: Path, mistake: str) -> None:
    changes, sentence = MISTAKES[mistake]
    with pytest.raises(CommandError, match=sentence):
        tune(request(tmp_path / "out", **changes), silent)
    assert not (tmp_path / "out" / "method.json").exists()


def test_a_budget_out_of_reach(tmp_path: Path) -> None:
    """DivPrune acts before the language model, so the tower's work cannot be saved."""
    with pytest.raises(CommandError, match=r"no setting of divprune spends 0.1 of the stock model's flops"):
        tune(request(tmp_path, method=DivPrune(), max_kl=None, budget=0.1, samples=4), silent)


def test_a_method_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "method.json").write_text("mine")
    with pytest.raises(CommandError, match="is there already, without its trials: give --out"):
        tune(request(tmp_path), silent)
    assert (tmp_path / "method.json").read_text() == "mine"


def test_verdicts(tmp_path: Path) -> None:
    """What the sentence says follows the interval of the gain."""
    found = tune(request(tmp_path, method=FastV(), max_kl=None, budget=0.5, by="tokens", trials=2), silent)
    assert found.gain is not None
    other = replace(found.held_out[0], method=VTW().to_dict())
    told_of: dict[str, tuple[float | None, float | None]] = {
        "KL is lower": (0.1, 0.3),
        "keep what was given": (-0.3, -0.1),
        "cannot tell": (-0.1, 0.1),
        "cannot tell the two apart": (None, None),  # of one prompt
    }
    for told, (low, high) in told_of.items():
        shown = replace(found, gain=replace(found.gain, low=low, high=high), held_out=(other, found.held_out[1]))
        assert told in shown.verdict()[0]
        folder = tmp_path / told
        folder.mkdir()
        write(replace(shown, request=replace(shown.request, out=folder)))
        lost = told == "keep what was given"
        assert method_from_dict(json.loads((folder / "method.json").read_text())) == (VTW() if lost else found.found)
        assert (folder / "found.json").exists() == lost
    same = replace(found, held_out=(found.held_out[1], found.held_out[1]))
    assert "Nothing was found that is better" in same.verdict()[0]
    assert np.isfinite(found.gain.value)
