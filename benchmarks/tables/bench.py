"""Tables and picture of what `foveate bench` measured, as it makes them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from foveate.lab.bench import plot, result, show


def page(found: dict[str, Any]) -> str:
    """As ``--table`` writes them."""
    return show.markdown(result.of_json(found))


def picture(found: dict[str, Any]) -> bytes:
    """As ``--plot`` draws it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.png"
        plot.draw(result.of_json(found), path)
        return path.read_bytes()
