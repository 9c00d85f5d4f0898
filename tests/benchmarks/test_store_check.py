"""What `store.py check` names, and what it lets pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import COUNT, EXPERIMENT, change, problems, redo, run
from PIL import Image

from stored import running
from stored.pages import Pages, stamp

STALE = "seed: 3\nstale: {since: 2026-11-29, why: keep means something else now}"


def spoil_table(root: Path) -> None:
    change(root / "page.md", "| 7 |", "| 9 |")


def spoil_result(root: Path) -> None:
    change(root / "benchmarks" / "results" / "counts.json", '"n": 7', '"n": 9')


def no_result(root: Path) -> None:
    (root / "benchmarks" / "results" / "counts.json").unlink()


def no_experiment(root: Path) -> None:
    results = root / "benchmarks" / "results"
    shutil.copy(results / "counts.json", results / "other.json")


def of_another(root: Path) -> None:
    change(root / "benchmarks" / "results" / "counts.json", '"experiment": "counts"', '"experiment": "other"')


def other_command(root: Path) -> None:
    redo(root, "{out}", "--more {out}")


def no_marker(root: Path) -> None:
    (root / "page.md").write_text("# Page\n")


def open_marker(root: Path) -> None:
    change(root / "page.md", "<!-- /table -->", "")


def no_page(root: Path) -> None:
    (root / "page.md").unlink()


def unknown_marker(root: Path) -> None:
    (root / "other.md").write_text("<!-- table: nobody -->\n<!-- /table -->\n")


def wrong_page(root: Path) -> None:
    shutil.copy(root / "page.md", root / "other.md")


def twice(root: Path) -> None:
    (root / "page.md").write_text((root / "page.md").read_text() * 2)


def no_function(root: Path) -> None:
    redo(root, "shown:table", "shown:nothing")


def no_module(root: Path) -> None:
    redo(root, "shown:table", "hidden:table")


def other_shape(root: Path) -> None:
    change(root / "benchmarks" / "results" / "counts.json", '"n": 7', '"m": 7')


def old_schema(root: Path) -> None:
    change(root / "benchmarks" / "results" / "counts.json", '"schema": 1', '"schema": 0')


def half_result(root: Path) -> None:
    change(root / "benchmarks" / "results" / "counts.json", '"seed": 3,', "")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_table, "page.md: the table counts is not what benchmarks/results/counts.json says: run `make tables`"),
        (spoil_result, "page.md: the table counts is not what benchmarks/results/counts.json says"),
        (no_result, "there is no result of counts: run `make result NAME=counts`"),
        (no_experiment, "results/other.json has no experiment: write experiments/other.yaml, or delete it"),
        (of_another, "results/counts.json is the result of other"),
        (other_command, "the result of counts is of another command than the experiment's"),
        (
            no_marker,
            "page.md: the table counts: write <!-- table: counts --> and <!-- /table --> where it belongs, once",
        ),
        (open_marker, "page.md: the table counts: write <!-- table: counts --> and <!-- /table --> where it belongs"),
        (no_page, "page.md: the table counts: write <!-- table: counts -->"),
        (unknown_marker, "other.md: the marker <!-- table: nobody --> belongs to no experiment's table"),
        (wrong_page, "other.md: the marker <!-- table: counts --> belongs to no experiment's table"),
        (twice, "page.md: the marker of the table counts is there twice"),
        (no_function, "page.md: the table counts: benchmarks/tables/shown.py has no function nothing"),
        (no_module, "page.md: the table counts: there is no file benchmarks/tables/hidden.py"),
        (
            other_shape,
            "page.md: the table counts: shown:table cannot make it of benchmarks/results/counts.json: KeyError('n')",
        ),
        (old_schema, "results/counts.json is no result of schema 1"),
        (half_result, "results/counts.json is no whole result (seed)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_check_names_what_is_wrong(root: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    run(root)
    spoil(root)
    assert any(problem.startswith(sentence) for problem in problems(root)), problems(root)


def test_the_check_shows_both_numbers(root: Path) -> None:
    run(root)
    spoil_table(root)
    (problem,) = problems(root)
    assert "    -| 9 |\n    +| 7 |" in problem


def test_a_table_of_several_results_in_the_order_that_is_said(root: Path) -> None:
    experiments = root / "benchmarks" / "experiments"
    (experiments / "more.yaml").write_text(EXPERIMENT.partition("tables:")[0].replace("count.py", "more.py"))
    (root / "more.py").write_text(COUNT.replace("7", "5"))
    (root / "benchmarks" / "tables" / "shown.py").write_text(
        "def table(one, other):\n    return f\"{one['n']}, {other['n']}\"\n"
    )
    redo(root, "shown:table}", "shown:table, of: [more, counts]}")
    pages = Pages(root)
    for name in ("counts", "more"):
        running.run(pages.experiment(name), root, pages.results, False)
    assert pages.write()[1] == []
    assert "<!-- table: counts -->5, 7<!-- /table -->" in (root / "page.md").read_text()
    assert problems(root) == []


def test_a_few_words_stay_in_their_sentence(root: Path) -> None:
    redo(root, "shown:table", "shown:words")
    (root / "page.md").write_text("There are <!-- table: counts -->no<!-- /table -->, at least.\n")
    run(root)
    assert (root / "page.md").read_text() == "There are <!-- table: counts -->7 of them<!-- /table -->, at least.\n"


def test_a_stale_result_says_so_wherever_it_is_shown(root: Path) -> None:
    run(root)
    redo(root, "seed: 3", STALE)
    assert any(problem.startswith("page.md: the table counts is not what") for problem in problems(root))
    assert Pages(root).write()[1] == []
    assert "| 7 |\n\n*Stale: keep means something else now.*\n" in (root / "page.md").read_text()
    assert "**Stale**: keep means something else now." in (root / "docs" / "results.md").read_text()
    redo(root, "shown:table", "shown:words")
    assert Pages(root).write()[1] == []
    assert "7 of them (stale)" in (root / "page.md").read_text()


def test_a_result_of_after_the_change_is_not_stale(root: Path) -> None:
    redo(root, "seed: 3", STALE.replace("2026-11-29", "2020-01-01"))
    day = run(root).date
    assert problems(root) == [f"counts says that its result is stale, and it is of {day}: delete `stale`"]
    redo(root, "since: 2020-01-01", f"since: {day}")
    assert not any("delete `stale`" in problem for problem in problems(root))


def test_a_result_that_needs_another_machine_may_be_missing(root: Path) -> None:
    redo(root, "seed: 3", "seed: 3\nawaits: a machine with a GPU")
    assert Pages(root).write()[1] == []
    assert problems(root) == []
    assert "*Not measured yet: it takes a machine with a GPU.*" in (root / "page.md").read_text()
    assert "No result yet: it takes a machine with a GPU." in (root / "docs" / "results.md").read_text()
    run(root)
    assert problems(root) == ["counts says that it awaits a result, and there is one: delete `awaits`"]


def test_a_marker_in_code_is_none(root: Path) -> None:
    (root / "other.md").write_text("Write `<!-- table: NAME -->` there.\n")
    run(root)
    assert problems(root) == []


def test_a_picture_says_what_it_was_drawn_from(root: Path) -> None:
    redo(root, "tables:", "files:\n  red.png: {by: shown:picture}\ntables:")
    found = run(root)
    assert stamp(root / "red.png") == found.digest()
    with Image.open(root / "red.png") as image:
        assert image.getpixel((0, 0)) == (7, 0, 0)
    assert problems(root) == []
    (root / "red.png").write_bytes(b"no picture")
    assert "red.png was not drawn from benchmarks/results/counts.json: run `make tables`" in problems(root)
    assert run(root).digest() == stamp(root / "red.png")
    spoil_result(root)
    assert "red.png was not drawn from benchmarks/results/counts.json: run `make tables`" in problems(root)
