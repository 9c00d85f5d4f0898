"""Where things are in the repository, and links between its files as links between pages of the site."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Files outside of docs/ that are pages of the site.
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "packages/reference/README.md": "reference/card.md",
}
#: Those of them that a page is made of; the others have one that is written for the site.
COPIED = {file: page for file, page in OUTSIDE.items() if not (DOCS / page).exists()}

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`(?!\]))", re.M | re.S)


def relink(markdown: str, source: Path, page: str) -> str:
    """Links that are right in ``source`` as they must be in ``page``.

    A link to a file that is no page becomes its text. One to a file that does not exist stays, for the strict build to find.
    """

    def link(found: re.Match[str]) -> str:
        bang, text, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return found[0]
        file = Path(os.path.normpath(source.parent / path))
        to = page_of(file)
        if to is None:
            return text if file.exists() and not bang else found[0]
        return f"{bang}[{text}]({_relative(to, page)}{hash_}{anchor})"

    return "".join(part if i % 2 else _LINK.sub(link, part) for i, part in enumerate(_CODE.split(markdown)))


def page_of(file: Path) -> str | None:
    """The page, picture or other file of the site that a file of the repository is, if it is one."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix() if file.exists() else None
    return OUTSIDE.get(file.relative_to(ROOT).as_posix()) if file.is_relative_to(ROOT) else None


def section(file: str, heading: str) -> str:
    """What stands below a heading of a Markdown file, up to the next one of its level or above."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    level = next((len(line) - len(line.lstrip("#")) for line in lines if line.lstrip("# ") == heading), 0)
    if not level:
        raise ValueError(f"{file} has no heading {heading!r}")
    start = next(i for i, line in enumerate(lines) if line == f"{'#' * level} {heading}") + 1
    stop = next((i for i in range(start, len(lines)) if re.match(rf"#{{1,{level}}} ", lines[i])), len(lines))
    return "\n".join(lines[start:stop]).strip()


def _relative(to: str, page: str) -> str:
    return PurePosixPath(os.path.relpath(to, PurePosixPath(page).parent)).as_posix()
