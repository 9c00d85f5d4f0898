"""What is made for the site: pages of methods, curves, links. The site itself is built by `make docs-check`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import check
import choice
import curves
import evidence
import facts
import hook
import lists
import methods
import pytest
import repository
import survivors
import weights

import foveate

ROOT = Path(__file__).parents[2]
NAMES = list(foveate.list_methods())


def test_every_method_is_under_one_heading() -> None:
    assert sorted(name for names in methods.groups().values() for name in names) == sorted(NAMES)
    assert {"random", "stride", "downsample"} == set(methods.groups()["Controls"])
    assert {"tome", "visionzip"} < set(methods.groups()["In the vision tower, or at its output"])
    assert "luvc" in methods.groups()["At several places"]
    assert all(f"]({name}.md) |" in methods.table() for name in NAMES)


@pytest.mark.parametrize("file", lists.FILES, ids=lambda file: file.name)
def test_committed_lists_are_those_of_the_code(file: Path) -> None:
    text = file.read_text()
    assert lists.FILES[file](text) == text, "run: python tools/pages/lists.py"
    assert lists.FILES[file](text.replace("FastV", "SlowV")) != text.replace("FastV", "SlowV"), "nothing of it is made"


def test_every_part_is_weighed() -> None:
    """What it weighs may be a little out of date; that it is there may not."""
    assert weights.folders(weights.PACKAGE) == {*weights.LIBRARY, "lab"} - {"."}
    assert weights.folders(weights.LAB) == set(weights.WING) - {"."}
    [table] = (found[0] for found in weights.TABLE.finditer((ROOT / "CONTRIBUTING.md").read_text()))
    assert {f"| `{name}/` | {says} |" in table for name, says in weights.LIBRARY.items() if name != "."} == {True}
    assert {f"| `lab/{name}/` | {says} |" in table for name, says in weights.WING.items() if name != "."} == {True}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_what_the_class_says(name: str) -> None:
    page, cls = methods.page(name), foveate.list_methods()[name]
    assert page.startswith(f"# {cls.__name__}\n")
    assert "``" not in page[: page.index("## The file")].replace("```", "")
    says = facts.methods()[name]["meanings"]
    for option, told in facts.methods()[name]["options"].items():
        assert says.get(option), f"the docstring of {cls.__name__} does not say what `{option}` is"
        kind = told["type"].replace("|", "\\|")
        assert f"| `{option}` | `{kind}` |" in page
    table = (ROOT / "docs" / "serving.md").read_text().splitlines()
    row = next(line for line in table if line.startswith(f"| `{cls.__name__}` |"))
    _, is_served, _, says = row[2:-2].split(" | ")
    assert ("so it can be [served]" in page) == (is_served != "no")
    assert cls.fixed_budget or is_served != "yes"
    assert re.fullmatch(r"(`--[a-z-]+`\.)? ?(`\w+`:? .+\.)?", says), "it is a sentence"
    for number in re.findall(r"arXiv (\d{4}\.\d{4,5})", f"{cls.__doc__} arXiv {cls.paper and cls.paper.arxiv}"):
        assert f"https://arxiv.org/abs/{number}" in page


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    """They differ in the name of the class only, so the model is loaded once, and the first under each heading runs."""
    first = {names[0] for names in methods.groups().values()}
    loads = ""
    names: dict[str, Any] = {}
    for name in NAMES:
        [program] = re.findall(r"## Use\n\n```python\n(.*?)```", methods.page(name), re.S)
        head, with_, rest = program.partition("with foveate.compress(")
        if head != loads:
            exec(head, names)
            assert not loads, "they begin alike"
            loads = head
        if name not in first:
            assert rest.startswith(f"model, foveate.{foveate.list_methods()[name].__name__}(")
            continue
        exec(with_ + rest, names)
        printed = capsys.readouterr().out
        assert re.match(r"color of \w+ \? \w+\n", printed)
        parts = {part.name() for part in foveate.list_methods()[name]().parts()}  # of a sum, these act
        assert all(f" {part}: " in printed for part in parts), "it was not visited"


def test_curves_are_those_of_the_results() -> None:
    [qwen, llava] = evidence.of_method("divprune")
    assert (qwen.model, llava.model) == ("qwen2_5_vl", "llava")
    for run in (qwen, llava):
        picture = ElementTree.fromstring(curves.chart(run, "divprune"))
        titles = {title.text for title in picture.iter("title")}
        for row in run.of("divprune")["divprune"]:
            assert f"divprune: {row['accuracy']['value']:.1%} at {row['spent']['tokens']:.1%}" in titles
        assert any(title and title.startswith("random: ") for title in titles)
        assert (ROOT / "docs" / run.report).is_file()
        for mark in picture.iter("circle"):
            x, y = float(mark.attrib["cx"]), float(mark.attrib["cy"])
            assert curves.LEFT <= x <= curves.WIDTH - curves.RIGHT
            assert curves.TOP <= y <= curves.HEIGHT - curves.BOTTOM


def test_a_method_that_saves_no_tokens_is_shown_over_flops() -> None:
    """By tokens there are only sums with IPCV in them, which say little of IPCV."""
    runs = evidence.of_method("ipcv")
    assert [run.by for run in runs] == ["flops"] * 2
    assert all("ipcv" in run.of("ipcv") for run in runs)
    assert "stride dashed" in curves.legend(runs, "ipcv")
    assert "random" not in curves.legend(runs, "ipcv"), "these runs have no such line"


def test_what_was_not_measured_says_so() -> None:
    measured = [name for name in NAMES if evidence.of_method(name)]
    assert {"luvc", "ipcv", "adsc", "fastv", "random"} <= set(measured)
    for name in NAMES:
        assert ("There is no curve" in methods.page(name)) == (name not in measured)


def test_the_choice_is_from_the_results() -> None:
    table = choice.table()
    [line] = [line for line in table.splitlines() if "catalog/divprune.md" in line]
    [half] = [row for row in evidence.of_method("divprune")[0].of("divprune")["divprune"] if row["budget"] == 0.5]
    assert f"**{half['retention']['value']:.1%}** ({half['spent']['flops']:.0%})" in line
    assert "*[Random](catalog/random.md)*" in table
    assert "+" not in table


def test_links_out_of_the_docs() -> None:
    page, there = ROOT / "docs" / "reference-benchmark.md", "reference-benchmark.md"
    link = repository.relink("see [it](../packages/reference/README.md#x)", page, there)
    assert link == "see [it](reference/card.md#x)"
    assert repository.relink("[a](../CONTRIBUTING.md)", page, there) == "[a](contributing.md)"
    assert (
        repository.relink("[a](systems.md) ![b](results/x.png)", page, there) == "[a](systems.md) ![b](results/x.png)"
    )
    assert repository.relink("[a](https://x.org/y)", page, there) == "[a](https://x.org/y)"
    assert repository.relink("[the file](../Makefile)", page, there) == "the file"
    assert repository.relink("[a](../missing.md)", page, there) == "[a](../missing.md)", (
        "the strict build is to find it"
    )
    assert repository.relink("`[a](../Makefile)`", page, there) == "`[a](../Makefile)`"
    card = repository.relink("[a](docs/serving.md)", ROOT / "README.md", "deep/page.md")
    assert card == "[a](../serving.md)"


def test_sections() -> None:
    assert repository.section("docs/serving.md", "Limits").startswith("* ")
    assert "## " not in repository.section("README.md", "Limits")
    with pytest.raises(ValueError, match="no heading 'Nothing'"):
        repository.section("README.md", "Nothing")


def _page(uri: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=uri, generated_by=None), meta={})


def test_what_written_pages_ask_for_is_made() -> None:
    limits = hook.on_page_markdown((ROOT / "docs" / "limits.md").read_text(), _page("limits.md"), None, None)
    assert "<!--" not in limits
    assert "StaticCache" in limits
    concepts = hook.on_page_markdown((ROOT / "docs" / "concepts.md").read_text(), _page("concepts.md"), None, None)
    ElementTree.fromstring(re.findall(r"<figure.*?</figure>", concepts, re.S)[0])
    with pytest.raises(KeyError):
        hook.on_page_markdown("<!-- make: nothing -->", _page("x.md"), None, None)


def test_the_navigation_has_every_method() -> None:
    nav = [{"Methods": ["catalog/index.md", "catalog/*", {"More": ["a.md"]}]}]
    config = hook.on_config(SimpleNamespace(nav=nav, extra={}, repo_url="https://x.org", copyright=None))
    [section] = config.nav
    pages = {page for item in section["Methods"] if isinstance(item, dict) for part in item.values() for page in part}
    assert pages == {*(f"catalog/{name}.md" for name in NAMES), "a.md"}


def test_the_picture_of_the_first_page() -> None:
    figure = survivors.figure()
    ElementTree.fromstring(figure)
    assert figure.count("25 of 100 tokens<br/>") == 3
    assert figure.count("<svg") == 4


def test_the_first_page_fits_a_phone_and_has_a_number_and_a_button() -> None:
    """A phone of 390 pixels shows 43 signs of a line of code."""
    page = (ROOT / "docs" / "index.md").read_text()
    code = re.findall(r"^```\w+\n(.*?)^```$", page, re.M | re.S)
    assert "pip install . " in code[0], "the first thing is how to get it"
    assert max(len(line) for block in code for line in block.splitlines()) <= 43
    start = page[: page.index("<!-- make: survivors -->")]
    assert "{ .md-button .md-button--primary }" in start
    assert re.search(r"<!-- table: home-numbers -->.*\*\*\d.*<!-- /table -->", start, re.S)


def test_the_repository_and_the_version_are_on_every_page() -> None:
    config = hook.on_config(SimpleNamespace(nav=[], extra={}, repo_url="https://x.org", copyright=None))
    assert config.extra["release"] == foveate.__version__
    assert config.copyright.startswith(f'<a href="https://x.org">foveate {foveate.__version__}</a>')
    header = (ROOT / "tools" / "pages" / "theme" / "partials" / "source.html").read_text()
    assert "config.repo_url" in header
    assert "config.extra.release" in header
    assert "data-md-component" not in header, "the theme's script would ask GitHub for its stars"


def test_the_reference_has_a_page_for_each_module() -> None:
    pages = {page.name: page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")}
    names = [name for text in pages.values() for name in re.findall(r"^::: ([\w.]+)$", text, re.M)]
    assert len(names) == len(set(names)) > 30
    assert set(re.findall(r"\]\((\w+\.md)\)", pages["index.md"])) == set(pages) - {"index.md"}


def test_pages_are_made_without_torch() -> None:
    """And without anything else that the package needs: the site's environment has mkdocs, and no model."""
    program = f"""
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "numpy", "PIL", "rich", "typer", "foveate_reference"])
sys.path[:0] = [{str(ROOT / "tools" / "pages")!r}, {str(ROOT / "src")!r}]
import hook, methods
assert all(make() for make in hook.MADE.values())
assert all(methods.page(name) for names in methods.groups().values() for name in names)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="it asks make")
def test_the_environment_of_the_site_has_no_torch() -> None:
    made = subprocess.run(["make", "-nB", ".venv-docs/.stamp"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert '"mkdocs>=' in made.stdout
    assert not re.search(r"torch|-e \.|\[docs\]", made.stdout)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ('<script src="https://cdn.org/x.js"></script>', "loads https://cdn.org/x.js"),
        ('<link rel="stylesheet" href="//cdn.org/x.css">', "loads //cdn.org/x.css"),
        ('<img src="http://cdn.org/x.png">', "loads http://cdn.org/x.png"),
        ("<!-- make: it -->", "nothing was made of 'make: it'"),
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(page: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(f'<a href="https://arxiv.org">fine</a><img src="a.png">{page}')
    [problem] = check.problems(tmp_path)
    assert says in problem


def test_a_site_that_is_not_there_is_no_success(tmp_path: Path) -> None:
    assert "build the site first" in next(check.problems(tmp_path))
