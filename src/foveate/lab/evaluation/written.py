"""What a run leaves in its folder besides answers: files by name, each from what goes into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foveate.lab.terminal import CommandError

#: Text, plain data, or a function that draws at a path.
Content = str | dict[str, Any] | Callable[[Path], None]

JSON, MARKDOWN, CURVE = "results.json", "results.md", "accuracy.png"


def write(folder: Path, files: Mapping[str, Content]) -> list[Path]:
    """Write text, plain data as JSON, and what a function draws at a path; the paths, in this order.

    Raises:
        CommandError: the folder takes no files.
    """
    paths = {folder / name: content for name, content in files.items()}
    try:
        for path, content in paths.items():
            if callable(content):
                content(path)
            elif isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            else:
                path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write the report to {str(folder)!r}: {error}") from None
    return list(paths)
