"""What a strict build does not look at: the built site loads nothing from elsewhere, and every page has its words.

python tools/pages/check.py FOLDER
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

#: Elements that load what their attribute names, when the page is opened.
LOADS = {
    "audio": "src",
    "iframe": "src",
    "image": "href",
    "img": "src",
    "link": "href",
    "script": "src",
    "source": "src",
    "use": "href",
    "video": "src",
}


class Page(HTMLParser):
    """What a page loads, and what is left of what it asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.comments: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        if tag in LOADS and (url := given.get(LOADS[tag])):
            self.loaded.append(url)

    def handle_comment(self, data: str) -> None:
        if re.match(r" (make|include):", data):
            self.comments.append(data.strip())


def problems(folder: Path) -> Iterator[str]:
    """One sentence for each."""
    pages = sorted(folder.rglob("*.html"))
    if not pages:
        yield f"{folder} has no pages: build the site first (make site)"
    for path in pages:
        page, name = Page(path.read_text(encoding="utf-8")), path.relative_to(folder)
        for url in page.loaded:
            if re.match(r"(https?:)?//", url):
                yield f"{name} loads {url}: put it into docs/assets"
        yield from (f"{name}: nothing was made of {comment!r}" for comment in page.comments)
    for path in sorted(folder.rglob("*.css")):
        for url in re.findall(r"""url\(["']?((?:https?:)?//[^)"']+)|@import ["'](https?:[^"']+)""", path.read_text()):
            yield f"{path.relative_to(folder)} loads {''.join(url)}: put it into docs/assets"


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1])))
    print("\n".join(found) or "nothing is loaded from elsewhere")
    sys.exit(bool(found))
