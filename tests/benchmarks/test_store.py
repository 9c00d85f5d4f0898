"""The result store: this checkout's tables are what its results say, and whatever is not so is named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, TABLES, env, git, problems, redo, run

from foveate.lab.terminal import CommandError

from stored import result, running
from stored.pages import Pages

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
    assert not problems(ROOT)


def test_a_number_that_was_typed_is_found(copy: Path) -> None:
    assert not problems(copy)
    page = (copy / "docs" / "speed.md").read_text()
    table = re.search(r"<!-- table: overhead -->.*?<!-- /table -->", page, re.S)
    assert table is not None
    typed = re.sub(r"\d(?=\.\d\d \()", "9", table[0], count=1)
    (copy / "docs" / "speed.md").write_text(page.replace(table[0], typed))
    (problem,) = problems(copy)
    assert problem.startswith("docs/speed.md: the table overhead is not what benchmarks/results/overhead.json says")
    (copy / "docs" / "speed.md").write_text(page)


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


def test_a_result_of_code_that_the_history_lacks_is_remarked(root: Path) -> None:
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    run(root)
    assert list(Pages(root).remarks()) == []
    git(root, "commit", "-q", "--amend", "-m", "another")  # as a rebase does
    (root / "benchmarks" / "tables" / "shown.py").write_text(TABLES + "\n")
    assert list(Pages(root).remarks()) == [
        "measured at a commit of a branch that was rebased, not in this history: counts"
    ]
    run(root)
    assert list(Pages(root).remarks()) == ["measured with changes that their commit lacks: counts"]


def test_what_is_printed_is_the_result_where_nothing_is_named(root: Path) -> None:
    redo(root, "count.py {out}", "count.py /dev/stdout")
    assert run(root).found["n"] == 7


def test_a_result_names_no_folder_of_the_machine(root: Path) -> None:
    (root / "where.py").write_text("import json, sys; print(json.dumps({'n': 7, 'written': sys.argv[1]}))")
    redo(root, "count.py {out}", "where.py {work}/pictures")
    assert run(root).found == {"n": 7, "written": "benchmarks/results/counts.partial/pictures"}


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
