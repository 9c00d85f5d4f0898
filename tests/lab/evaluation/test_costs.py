"""What methods spend is measured once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate import Method, Stride
from foveate.lab.asker import Cost
from foveate.lab.evaluation.costs import Costs
from foveate.lab.terminal import CommandError

HEADER = {"weights": "abc"}


class Measure:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[Method] = []

    def __call__(self, method: Method) -> Cost:
        self.asked.append(method)
        assert isinstance(method, Stride)
        assert method.keep is not None
        return Cost(method.keep / 3, 2.0, 3.0, 1.0, 8.0, 6.0)


def test_measured_once(tmp_path: Path) -> None:
    first, second = Measure(), Measure()
    costs = Costs(first, tmp_path / "costs.jsonl", HEADER)
    said = [costs(Stride(keep=keep)) for keep in (0.1, 0.2, 0.1)]
    assert first.asked == [Stride(keep=0.1), Stride(keep=0.2)]
    again = Costs(second, tmp_path / "costs.jsonl", HEADER)
    assert [again(Stride(keep=keep)) for keep in (0.1, 0.2, 0.1)] == said, "to the last bit"
    assert not second.asked
    again(Stride(keep=0.3))
    assert second.asked == [Stride(keep=0.3)]


def test_of_other_questions(tmp_path: Path) -> None:
    Costs(Measure(), tmp_path / "costs.jsonl", HEADER)(Stride(keep=0.1))
    with pytest.raises(CommandError, match="is of another run, whose weights was"):
        Costs(Measure(), tmp_path / "costs.jsonl", {"weights": "def"})
    again = Measure()
    Costs(again, tmp_path / "costs.jsonl", {"weights": "def"}, alone=True)(Stride(keep=0.1))
    assert len(again.asked) == 1, "what a run that answered nothing has left is no hindrance"


def test_a_file_that_was_edited(tmp_path: Path) -> None:
    path = tmp_path / "costs.jsonl"
    path.write_text(json.dumps(HEADER) + "\n" + json.dumps({"id": json.dumps(Stride().to_dict()), "cost": None}) + "\n")
    with pytest.raises(CommandError, match="has a method without what it spends: delete the file"):
        Costs(Measure(), path, HEADER)


def test_of_several() -> None:
    costs = [(Cost(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 2), (Cost(1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 1)]
    total = Cost.total(costs)
    assert total == Cost(3.0, 5.0, 7.0, 9.0, 11.0, 13.0)
    assert [total.share(by) for by in ("tokens", "flops", "kv")] == [3 / 9, 5 / 11, 7 / 13]
    assert Cost.total([]).share("tokens") == 1.0, "nothing can be saved of nothing"
