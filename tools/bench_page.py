"""Tables and picture of docs/bench.md, from what ``foveate bench`` wrote: ``python tools/bench_page.py`` makes them."""

from __future__ import annotations

import re
from pathlib import Path

from foveate.bench.plot import draw
from foveate.bench.result import read
from foveate.bench.show import markdown

DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULT = DOCS / "bench.md", DOCS / "results" / "bench" / "cpu.json"
MARKED = re.compile(r"(<!-- tables: tools/bench_page.py -->\n).*?(<!-- end -->)", re.S)


def page() -> str:
    """The page with its tables written anew."""
    result = read(RESULT)
    tables = f"\n    {result.command}\n\n{markdown(result)}\n"
    return MARKED.sub(lambda found: found[1] + tables + found[2], PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    draw(read(RESULT), RESULT.with_suffix(".png"))
