"""The README's program runs as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

#: What a fresh installation of the core dependencies does not have.
WITHOUT = "import sys; sys.modules |= dict.fromkeys(('torchvision', 'torchcodec', 'matplotlib', 'scipy', 'peft'))"
README = Path(__file__).parents[1] / "README.md"


def test_the_first_program_needs_the_core_dependencies_only(tmp_path: Path) -> None:
    """As it stands, but for the model, which would be downloaded."""
    [program, *_] = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    program, changed = re.subn(r"^(model|processor) = \S+\.from_pretrained\(.*\)\n", "", program, flags=re.M)
    assert changed == 2
    Image.new("RGB", (160, 120), (200, 30, 30)).save(tmp_path / "cat.jpg")
    program = f"{WITHOUT}\nimport foveate_reference\nmodel, processor = foveate_reference.load()\n{program}"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "visual tokens" in done.stdout


def test_the_first_screen_has_the_gain_and_a_picture() -> None:
    """And then the contents, each of which is there."""
    text = README.read_text()
    start = text[: text.index("```python")]
    gain = re.search(r"<!-- table: systems-gain -->(.*?)<!-- /table -->", start)
    assert gain is not None
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


def test_the_program_in_the_readme(tmp_path: Path) -> None:
    programs = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "load()" in block]
    assert len(programs) == 1
    done = subprocess.run(
        [sys.executable, "-c", programs[0]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    question, right = done.stdout.splitlines()[0].split(" (right: ")
    assert question.endswith(right.rstrip(")"))
    assert (tmp_path / "scene.png").exists()
