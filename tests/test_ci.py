"""CI promises its suites: one that fails, or that time does not reach, fails the whole; what follows is left out by name.

And the workflows on GitHub call what the Makefile has, with no right that they do not need.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import foveate
import foveate_reference

ROOT = Path(__file__).parents[1]
RUN = ROOT / ".ci" / "run"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROMISED = ("lint", "results-check", "docs-check", "test", "wheel-test", "test-browser", "test-vllm", "test-oldest")

needs_make = pytest.mark.skipif(
    any(not shutil.which(tool) for tool in ("bash", "make", "timeout")), reason="CI runs where these are"
)


def run(folder: Path, *, bad: str = "-", slow: str = "-", limit: int = 60) -> tuple[int, list[str], str]:
    """The exit status, the targets that were made, and the last line. No suite has a budget of its own."""
    (folder / ".ci").mkdir()
    text = RUN.read_text()
    for line in text.split("promised=(")[1].split(")")[0].split("\n"):
        if line.strip():
            text = text.replace(line.split()[0] + " ", '"0 ', 1)
    (folder / ".ci" / "run").write_text(text)
    (folder / "Makefile").write_text(
        '%:\n\t@echo "made $@"\n\t@if [ "$@" = $(SLOW) ]; then sleep 20; fi\n\t@test "$@" != $(BAD)\n'
    )
    (folder / "chromium").write_text("#!/bin/sh\n")
    (folder / "chromium").chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    made = subprocess.run(
        ["bash", ".ci/run"],
        cwd=folder,
        env=os.environ | {"PATH": path, "BAD": bad, "SLOW": slow, "FOVEATE_CI_LIMIT": str(limit), "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = made.stdout.splitlines()
    return made.returncode, [line.split()[1] for line in lines if line.startswith("made ")], lines[-1]


@needs_make
def test_all_is_well(tmp_path: Path) -> None:
    assert run(tmp_path) == (0, [*PROMISED, "test-lmms", "test-examples"], "left out: nothing")


@needs_make
def test_what_fails_ends_it(tmp_path: Path) -> None:
    status, made, last = run(tmp_path, bad="wheel-test")
    assert (status != 0, made[-1]) == (True, "wheel-test")
    assert last.startswith("left out: make test-browser: not reached")


@needs_make
def test_a_promise_that_time_breaks_fails(tmp_path: Path) -> None:
    status, made, last = run(tmp_path, slow="test", limit=4)
    assert (status, made[-1]) == (1, "test")
    assert last.endswith("make test-lmms: not reached,make test-examples: not reached")


@needs_make
def test_what_follows_is_left_out(tmp_path: Path) -> None:
    status, made, last = run(tmp_path, slow="test-lmms", limit=4)
    assert (status, made[-1]) == (0, "test-lmms")
    assert last == "left out: make test-lmms: no time,make test-examples: no time"


def targets(workflow: Any) -> set[str]:
    """What a workflow makes, a matrix of targets included."""
    made: set[str] = set()
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            for words in re.findall(r"^make (.+)$", step.get("run", ""), re.M):
                made |= set(job["strategy"]["matrix"]["target"] if words == '"$TARGET"' else words.split())
    return made


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_makes_what_there_is(path: Path) -> None:
    known = re.findall(r"^([a-z][a-z -]*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    made = targets(yaml.safe_load(path.read_text()))
    assert made
    assert made <= {target for names in known for target in names.split()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job
        assert {right for right, what in job.get("permissions", {}).items() if what == "write"} <= {"pages", "id-token"}
    assert "secrets." not in path.read_text()


def test_a_release_uploads_every_package() -> None:
    """Each from a job and an environment of its own, as PyPI knows a publisher of new packages by them."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    uploads = jobs["publish"]["strategy"]["matrix"]["include"]
    projects = [ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]
    names = {re.search(r'^name = "(.+)"$', path.read_text(), re.M)[1] for path in projects}  # type: ignore[index]
    assert {upload["package"] for upload in uploads} == names
    assert len({upload["environment"] for upload in uploads}) == len(names)
    built = [step["with"] for step in jobs["build"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert {part["name"]: part["path"] for part in built} == {n: f"dist/{n.replace('-', '_')}-*" for n in names}


def test_the_address_is_the_same_everywhere() -> None:
    address = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert address is not None
    files = [
        *ROOT.glob("*.*"),
        *ROOT.glob("packages/*/*.toml"),
        *(ROOT / ".github").rglob("*.yml"),
        *(ROOT / "docs").glob("*.md"),
    ]
    texts = [path.read_text() for path in files if path.suffix in (".cff", ".md", ".toml", ".yml")]
    found = {name for text in texts for name in re.findall(r"https://github\.com/[\w.-]+/foveate\b", text)}
    assert found == {address[1]}


def test_the_version_is_the_same_everywhere() -> None:
    """One tag releases both packages, and a citation names it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == foveate.__version__ == foveate_reference.__version__


def test_the_weights_are_in_a_distribution_of_their_own() -> None:
    """The source distribution of foveate is a fifth without them; `make dist` builds the other from its folder."""
    included = re.search(
        r"^\[tool\.hatch\.build\.targets\.sdist\]\n(?:#.*\n)*include = (\[.*\])",
        (ROOT / "pyproject.toml").read_text(),
        re.M,
    )
    assert included is not None
    assert "packages" not in included[1]
    assert "for package in . packages/reference" in (ROOT / "Makefile").read_text()
