"""The README's program runs as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


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
