"""The README's programs run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

#: What an installation without extras does not have.
WITHOUT = "import sys; sys.modules |= dict.fromkeys(('torchcodec', 'matplotlib', 'scipy', 'peft'))"
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.fixture(scope="module")
def printed(programs: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The lines that each program prints, one after another in a process that has what the page installs first.

    They run as they stand, but for models that would be downloaded: in their place are the shipped ones.
    """
    folder = tmp_path_factory.mktemp("readme")
    Image.new("RGB", (160, 120), (200, 30, 30)).save(folder / "cat.jpg")
    run = [WITHOUT, "import foveate_reference"]
    for program in programs:
        mine = re.sub(r'"Qwen/[^"]*"', 'str(foveate_reference.PATHS["qwen2_5_vl"])', program)
        run += [mine, "print('-' * 9)"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(run)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "scene.png").exists()
    return [part.strip().splitlines() for part in done.stdout.split("-" * 9)[:-1]]


def test_programs_run_as_they_stand(printed: list[list[str]]) -> None:
    """What the second one asks has an answer that is known."""
    first, second, _ = printed
    assert first[1].startswith("visual tokens")
    question, right = second[0].split(" (right: ")
    assert question.endswith(right.rstrip(")"))


def test_the_first_program_is_short(programs: list[str]) -> None:
    assert len([line for line in programs[0].splitlines() if line]) <= 10


def test_it_is_no_longer_than_a_first_reader_needs() -> None:
    """Beside the list of methods, which has a line for each."""
    before, _, after = README.read_text().partition("<!-- methods: ")
    assert len(before.splitlines()) + len(after.partition("<!-- end -->")[2].splitlines()) <= 260


def test_the_first_screen_has_the_gain_and_a_picture() -> None:
    """And then the contents, each of which is there."""
    text = README.read_text()
    start = text[: text.index("## Install")]
    assert start.index("```python") < start.index("<!-- table")
    gain = re.search(r"<!-- table: systems-gain -->(.*?)<!-- /table -->", start)
    assert gain is not None
    assert re.search(r"first token.* comes \d\.\d times as soon with LUVC", gain[1])
    for said in (r"\d\.\d times", "Qwen2.5-VL", r"layers of width \d+", "visual tokens", r"threads of an? \w+"):
        assert re.search(said, gain[1]), said
    assert len(re.findall(r"^!\[[^]]*\]\(docs/", start, re.M)) == 1
    linked = re.findall(r"\]\(#([\w-]+)\)", start)
    headings = [heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", text, re.M)]
    assert linked
    assert set(linked) <= set(headings)


def test_words_are_said_before_they_are_used() -> None:
    text = README.read_text()
    words, rest = text.index("## Words"), text.index("## Without a download")
    for word in ("site", "Group-A", "dial", "budget"):
        plain = re.sub(r"<!--.*?-->|\[[^\]]*\]\([^)]*\)", lambda m: " " * len(m[0]), text)
        first = re.search(rf"\b{word}s?\b", plain, re.I)
        assert first is not None
        assert words < first.start() < rest, word
