"""The result store: this checkout's tables are what its results say, and whatever is not so is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.lab.terminal import CommandError

from stored import result, running
from stored.pages import Pages, stamp

ROOT = Path(__file__).parents[2]

EXPERIMENT = """\
says: How many
run: python count.py {out}
seed: 3
tables:
  counts: {in: page.md, by: shown:table}
"""
TABLES = """\
import io

from PIL import Image


def table(found):
    return f"| n |\\n|---|\\n| {found['n']} |"


def words(found):
    return f"{found['n']} of them"


def picture(found):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (found["n"], 0, 0)).save(out, "PNG")
    return out.getvalue()
"""
COUNT = (
    "import json, sys; json.dump({'n': 7, 'method': {'method': 'stride', 'positions': 'keep'}}, open(sys.argv[1], 'w'))"
)
PAGE = "# Page\n\n<!-- table: counts -->\n<!-- /table -->\n\nThe end.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with one experiment, not run yet."""
    for folder in ("experiments", "results", "tables"):
        (tmp_path / "benchmarks" / folder).mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "experiments" / "counts.yaml").write_text(EXPERIMENT)
    (tmp_path / "benchmarks" / "tables" / "shown.py").write_text(TABLES)
    (tmp_path / "count.py").write_text(COUNT)
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "docs" / "results.md").write_text("<!-- table: experiments --><!-- /table -->\n")
    return tmp_path


def run(root: Path, name: str = "counts", again: bool = False) -> result.Result:
    """As ``store.py run`` does it."""
    pages = Pages(root)
    done = running.run(pages.experiment(name), root, pages.results, again)
    assert pages.write()[1] == []
    return done


def problems(root: Path) -> list[str]:
    return list(Pages(root).problems())


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def redo(root: Path, old: str, new: str) -> None:
    """The experiment, written otherwise."""
    change(root / "benchmarks" / "experiments" / "counts.yaml", old, new)


# This checkout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the store of this checkout reads and writes, to be broken."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("benchmarks", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.partial", "__pycache__"))
    for shown in Pages(ROOT).shown():
        (root / shown.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / shown.file, root / shown.file)
    return root


def test_every_table_is_what_its_result_says() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/store.py", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=env(),
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_a_number_that_was_typed_is_found(copy: Path) -> None:
    assert not problems(copy)
    page = (copy / "README.md").read_text()
    table = re.search(r"<!-- table: overhead -->.*?<!-- /table -->", page, re.S)
    assert table is not None
    typed = re.sub(r"\d(?=\.\d\d \()", "9", table[0], count=1)
    (copy / "README.md").write_text(page.replace(table[0], typed))
    (problem,) = problems(copy)
    assert problem.startswith("README.md: the table overhead is not what benchmarks/results/overhead.json says")
    (copy / "README.md").write_text(page)


def test_a_result_that_was_changed_is_found_wherever_it_is_shown(copy: Path) -> None:
    path = copy / "benchmarks" / "results" / "reference-llava.json"
    kept = path.read_text()
    data = json.loads(kept)
    row = next(row for row in data["found"]["rows"] if (row["label"], row["budget"]) == ("divprune", 0.5))
    row["accuracy"]["value"] -= 0.1
    path.write_text(json.dumps(data))
    found = sorted(
        problem.splitlines()[0].partition(" is not ")[0].partition(" was not ")[0] for problem in problems(copy)
    )
    folder = "docs/results/reference/llava"
    assert found == [
        "README.md: the table fidelity-span",
        "docs/fidelity.md: the table fidelity-ranks",
        "docs/reference-benchmark.md: the table reference",
        f"{folder}/accuracy.png",
        f"{folder}/results.md: the file",
    ]
    path.write_text(kept)


# What a run keeps


def test_a_run_keeps_what_it_found_and_how(root: Path) -> None:
    found = run(root)
    data = json.loads((root / "benchmarks" / "results" / "counts.json").read_text())
    assert data.pop("schema") == result.SCHEMA
    assert data == vars(found)
    assert data["found"]["n"] == 7
    assert (data["experiment"], data["command"], data["seed"]) == ("counts", "python count.py {out}", 3)
    assert data["methods"] == [{"method": "stride", "positions": "keep"}]
    assert data["versions"].keys() >= {"python", "foveate", "torch", "transformers"}
    assert data["versions"]["torch"]
    assert data["machine"]["cores"] >= 1
    assert data["machine"].keys() == {"cpu", "architecture", "cores", "memory_gib", "accelerator", "system"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", data["date"])
    assert data["seconds"] >= 0
    assert (data["commit"], data["dirty"]) == (None, None)  # there is no checkout
    assert "| 7 |" in (root / "page.md").read_text()
    assert "How many." in (root / "docs" / "results.md").read_text()
    assert problems(root) == []
    assert not list(root.glob("benchmarks/results/*.partial"))


def test_a_run_names_its_commit_and_whether_that_is_all(root: Path) -> None:
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    first = run(root)
    assert (first.commit, first.dirty) == (git(root, "rev-parse", "HEAD"), False)
    assert run(root).dirty is False  # a result that is not committed yet is no change of the code
    (root / "benchmarks" / "tables" / "shown.py").write_text(TABLES + "\n")
    assert run(root).dirty is True


def test_what_is_printed_is_the_result_where_nothing_is_named(root: Path) -> None:
    redo(root, "count.py {out}", "count.py /dev/stdout")
    assert run(root).found["n"] == 7


def test_what_was_measured_elsewhere_says_no_more_than_it_knows(root: Path) -> None:
    git(root, "init", "-q")
    (root / "found.json").write_text(
        json.dumps({"n": 9, "settings": {"versions": {"torch": "2.6"}, "machine": {"cores": 4}}})
    )
    pages = Pages(root)
    unknown = running.adopt(pages.experiment("counts"), root, pages.results, root / "found.json")
    assert (unknown.commit, unknown.date, unknown.dirty, unknown.seconds) == (None,) * 4
    assert unknown.versions == {"python": None, "foveate": None, "torch": "2.6", "transformers": None}
    assert unknown.machine == {"cores": 4}
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    known = running.adopt(pages.experiment("counts"), root, pages.results, root / "found.json")
    assert known.commit == git(root, "rev-parse", "HEAD")
    assert pages.write()[1] == []
    assert "| 9 |" in (root / "page.md").read_text()
    assert problems(root) == []
    (root / "found.json").write_text("{")
    with pytest.raises(CommandError, match="is no JSON"):
        running.adopt(pages.experiment("counts"), root, pages.results, root / "found.json")


FAILS_FIRST = """\
import json, os, pathlib, signal, sys

work = pathlib.Path(sys.argv[1])
if (work / "half").exists():
    (work / "results.json").write_text(json.dumps({"n": 8}))
else:
    (work / "half").write_text("done")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_interrupted_run_leaves_the_old_result_and_goes_on(root: Path) -> None:
    run(root)
    before = (root / "benchmarks" / "results" / "counts.json").read_bytes()
    redo(root, "count.py {out}", "half.py {work}")
    (root / "half.py").write_text(FAILS_FIRST)
    with pytest.raises(CommandError, match=r"exit code -9.*run it again to go on"):
        run(root)
    assert (root / "benchmarks" / "results" / "counts.json").read_bytes() == before
    assert (root / "benchmarks" / "results" / "counts.partial" / "half").exists()
    assert run(root).found == {"n": 8}
    assert not (root / "benchmarks" / "results" / "counts.partial").exists()


def test_what_was_begun_under_another_command_is_not_gone_on_with(root: Path) -> None:
    redo(root, "count.py {out}", "half.py {work}")
    (root / "half.py").write_text(FAILS_FIRST)
    with pytest.raises(CommandError, match="exit code -9"):
        run(root)
    redo(root, "half.py {work}", "count.py {out}")
    with pytest.raises(CommandError, match=r"begun with command .*half.py.*say --again to begin anew"):
        run(root)
    assert run(root, again=True).found["n"] == 7


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("pass", "ended, but wrote no results.json: its command has to name {out}"),
        ("import sys; open(sys.argv[1], 'w').write('[1, NaN]')", "left is no JSON: NaN is not JSON"),
        ("import sys; open(sys.argv[1], 'w').write('[1, ')", "left is no JSON"),
        ("raise SystemExit(3)", "ended with exit code 3; its old result, if any, is as it was"),
    ],
)
def test_a_command_that_does_not_do_its_part(root: Path, script: str, sentence: str) -> None:
    (root / "count.py").write_text(script)
    with pytest.raises(CommandError, match=re.escape(sentence)):
        run(root)
    assert not (root / "benchmarks" / "results" / "counts.json").exists()


def test_what_is_needed_is_asked_for_before_the_run(root: Path) -> None:
    redo(root, "seed: 3", "seed: 3\nneeds:\n  no_such_module: pip install it")
    with pytest.raises(CommandError, match="counts needs no_such_module: pip install it"):
        run(root)


# What the check names


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


STALE = "seed: 3\nstale: {since: 2026-11-29, why: keep means something else now}"


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


# What an experiment may be


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("says: How many\n", "", "counts.yaml needs 'says': a line on what it measures"),
        ("run: python count.py {out}\n", "", "counts.yaml needs 'run': a command"),
        ("{out}", "{output}", "names {output}; there is {work} and {out}"),
        ("seed: 3", "sead: 3", "has the unknown key 'sead'; an experiment has says, run, seed"),
        ("seed: 3", "seed: often", "'seed' of counts.yaml is 'often': give a whole number"),
        ("in: page.md, ", "", "'counts' in counts.yaml needs in and by, and may have of"),
        ("shown:table", "shown", "is made by 'shown': give module:function"),
        ("  counts:", "  a count:", "a name is of letters, digits, _ and -"),
        ("seed: 3", "seed: [", "cannot read counts.yaml"),
        ("seed: 3", "stale: {since: lately, why: it changed}", "give {since: a day, why: what changed}"),
    ],
)
def test_an_experiment_that_is_none(root: Path, old: str, new: str, sentence: str) -> None:
    redo(root, old, new)
    with pytest.raises(CommandError, match=re.escape(sentence)):
        Pages(root).experiment("counts")


def test_an_unknown_name_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/store.py", "run", "overhaed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=env(),
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "Error: there is no experiment 'overhaed'; there is overhead"


def env() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def git(root: Path, *words: str) -> Any:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()
