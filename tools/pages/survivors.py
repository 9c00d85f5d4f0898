"""One image of the test split, what methods leave of it, and what the shipped reference model then answers (`asked`)."""

from __future__ import annotations

from html import escape
from typing import Any

import facts
from repository import DOCS

SIDE = 10  # of a patch in the drawing
SCENE = facts.SCENE.relative_to(DOCS).as_posix()  # from the first page, which is at the root


def figure() -> str:
    """The picture of the first page, as HTML."""
    asked = facts.asked(facts.SURVIVORS)
    panels = []
    for panel in asked["panels"]:
        name = f"<code>{escape(panel['method'])}</code>" if panel["method"] else "stock model"
        verdict = "right" if panel["answer"] == asked["right"] else "wrong"
        height, width = panel["grid"]
        panels.append(
            f"<div>{_picture(panel)}{name}<br/>{len(panel['kept'])} of {height * width} tokens<br/>"
            f'<span class="fv-{verdict}">{escape(panel["answer"])}</span></div>'
        )
    return (
        f'<figure class="fv-figure"><div class="fv-panels">{"".join(panels)}</div><figcaption>“{escape(asked["question"])}” '
        f"(right: {escape(asked['right'])}). The Qwen2.5-VL of the package looks at an image that it has never seen; dark "
        "patches were not there for its language model. One image is an anecdote; the pages of the methods have a thousand "
        "questions and more.</figcaption></figure>"
    )


def _picture(panel: dict[str, Any]) -> str:
    """The image, with a dark cell where a token is gone."""
    rows, columns = panel["grid"]
    kept = set(panel["kept"])
    height, width = rows * SIDE, columns * SIDE
    gone = "".join(
        f"M{SIDE * (i % columns)} {SIDE * (i // columns)}h{SIDE}v{SIDE}h-{SIDE}z"
        for i in range(rows * columns)
        if i not in kept
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{len(kept)} of {rows * columns} tokens left">'
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" href="{SCENE}"/>'
        f'<path d="{gone}" fill="#0b0d12" opacity=".86" shape-rendering="crispEdges"/></svg>'
    )
