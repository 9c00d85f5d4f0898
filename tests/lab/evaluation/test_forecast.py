"""A plan as a table for a person."""

from __future__ import annotations

from foveate.lab.evaluation.forecast import Forecast, Line


def test_what_questions_share_is_said_where_they_share_anything() -> None:
    alone, shared = Line("dense", "nothing", 4, 120.0), Line("stride at 0.5", "prompt", 4, 60.0)
    assert Forecast((alone,)).table() == [("method", "left", "seconds each", "minutes"), ("dense", "4", "30.00", "2.0")]
    assert [row[1] for row in Forecast((alone, shared)).table()] == ["questions share", "nothing", "prompt"]


def test_many_methods_are_a_line_for_each_budget() -> None:
    """Nobody reads hundreds; a few stay as they are."""
    budgets = ("0.8 of flops", "0.5 of kv")
    lines = [Line("dense", "nothing", 2, 1.0)]
    lines += [Line(f"m{i} at {budget}", "nothing", 2, 6.0) for i in range(20) for budget in budgets]
    found = Forecast(tuple(lines))
    assert [(row[0], row[1], row[3]) for row in found.table()[1:]] == [
        ("dense", "2", "0.0"),
        ("20 methods at 0.8 of flops", "40", "2.0"),
        ("20 methods at 0.5 of kv", "40", "2.0"),
    ]
    assert "82 questions to ask, in 41 parts, which --json lists" in str(found)
    assert len(found.to_dict()["lines"]) == 41
    assert len(Forecast(tuple(lines[:20])).table()) == 21
