"""What mkdocs asks while it builds: pages that are made, not written, and what written pages ask for.

A page may say:

* ``<!-- make: NAME -->``: a table or picture of `MADE`;
* ``<!-- include: FILE # HEADING -->``: what stands below a heading of a Markdown file of the repository;
* ``![...](drawing.svg)``: the drawing becomes a part of the page, so that it follows the palette.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import choice
import facts
import methods
import pairs
import survivors
from repository import COPIED, DOCS, ROOT, relink, section

MADE: dict[str, Callable[[], str]] = {
    "choice": choice.table,
    "methods": methods.table,
    "pairs": pairs.table,
    "survivors": survivors.figure,
}

#: Pages whose tables take the place of the table of contents; reports, too.
WIDE = ("families.md", "sites.md", "leaderboard.md", "pairs.md")
#: The `offline` plugin's theme loads the first; we have written the second.
FETCHED, WORKER = "https://unpkg.com/iframe-worker/shim", "assets/worker.js"

_ASKED = re.compile(r"<!-- (make|include): ([^#>]+?)(?: # ([^>]+?))? -->")
_DRAWING = re.compile(r"^!\[([^]]*)]\(([^)]+\.svg)\)$", re.M)


def on_config(config: Any) -> Any:
    """Methods into the navigation, under the headings of their list; and the version, into the header and the footer."""
    config.nav = _expanded(config.nav)
    config.extra["release"] = facts.version()
    config.copyright = f'<a href="{config.repo_url}">foveate {facts.version()}</a>, Apache-2.0'
    return config


def on_files(files: Any, config: Any) -> Any:
    """Pages of methods, and files outside of docs/."""
    from mkdocs.structure.files import File  # tests of this file do without mkdocs

    for heading in methods.groups().values():
        for name in heading:
            files.append(File.generated(config, f"catalog/{name}.md", content=methods.page(name)))
    for file, page in COPIED.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relink(text, ROOT / file, page)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """What a written page asks for, and its links to files outside of docs/."""
    uri = page.file.src_uri
    if uri in WIDE or uri.startswith("results/"):
        page.meta.setdefault("hide", ["toc"])
    if page.file.generated_by:
        return markdown

    def asked(found: re.Match[str]) -> str:
        what, name, heading = found.groups()
        if what == "make":
            return MADE[name]()
        return relink(section(name, heading), ROOT / name, uri)

    def drawn(found: re.Match[str]) -> str:
        alt, file = found.groups()
        svg = (DOCS / uri).parent.joinpath(file).read_text(encoding="utf-8")
        figure = f'<div class="fv-wide" role="img" aria-label="{alt}">{svg[svg.index("<svg") :].strip()}</div>'
        return f'<figure class="fv-figure">{figure}</figure>'

    return _DRAWING.sub(drawn, _ASKED.sub(asked, relink(markdown, DOCS / uri, uri)))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """What lets the search run where the site is opened as a file comes from the site, not from a network."""
    return output.replace(FETCHED, "../" * page.url.count("/") + WORKER)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same of the page for addresses that do not exist, which a server shows for any of them."""
    return output.replace(FETCHED, f"/{WORKER}")


def _expanded(nav: list[Any]) -> list[Any]:
    found: list[Any] = []
    for item in nav:
        if item == "catalog/*":
            found += [
                {heading: [f"catalog/{name}.md" for name in names]} for heading, names in methods.groups().items()
            ]
        elif isinstance(item, dict):
            found.append({key: _expanded(value) if isinstance(value, list) else value for key, value in item.items()})
        else:
            found.append(item)
    return found
