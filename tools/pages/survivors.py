"""One image of the test split, what methods leave of it, and what the shipped reference model then answers."""

from __future__ import annotations

import base64
import contextlib
import io
from functools import cache
from html import escape
from typing import Any

import torch
from PIL import Image
from transformers import logging

import foveate
import foveate_reference as reference
from foveate import Method

SCENE, QUESTION = 12, "color of cross ?"
KEEP = 0.25
METHODS: tuple[Method, ...] = (foveate.Random(keep=KEEP), foveate.VisionZip(keep=KEEP), foveate.DivPrune(keep=KEEP))
SIDE = 10  # of a patch in the drawing


@cache
def figure() -> str:
    """The picture of the first page, as HTML."""
    scene = reference.make_scene(reference.split_seed("test", SCENE))
    question = next(one for one in reference.ask(scene, seed=SCENE) if one.text == QUESTION)
    logging.disable_progress_bar()
    model, processor = reference.load()
    panels = []
    for method in (None, *METHODS):
        answer, kept, shape = _ask(model, processor, scene.image, question.text, method)
        name = f"<code>{type(method).__name__}(keep={KEEP:g})</code>" if method else "stock model"
        verdict = "right" if answer == question.answer else "wrong"
        panels.append(
            f"<div>{_picture(scene.image, kept, shape)}{name}<br/>{len(kept)} of {shape[0] * shape[1]} tokens<br/>"
            f'<span class="fv-{verdict}">{escape(answer)}</span></div>'
        )
    return (
        f'<figure class="fv-figure"><div class="fv-panels">{"".join(panels)}</div><figcaption>“{escape(question.text)}” '
        f"(right: {escape(question.answer)}). The Qwen2.5-VL of the package looks at an image that it has never seen; dark "
        "patches were not there for its language model. One image is an anecdote; the pages of the methods have a thousand "
        "questions and more.</figcaption></figure>"
    )


def _ask(model: Any, processor: Any, image: Any, question: str, method: Method | None) -> tuple[str, set[int], Any]:
    """The answer, the raster indices of what is left, and the grid."""
    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    height, width = (int(side) // 2 for side in inputs["image_grid_thw"][0, 1:])  # a token is 2x2 patches
    kept = set(range(height * width))
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        handle = stack.enter_context(foveate.compress(model, method)) if method else None
        ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        if handle is not None:
            for visit in handle.report().visits:
                kept &= set(visit.kept[0])
    return processor.decode(ids[0, -1:]).strip(), kept, (height, width)


def _picture(image: Any, kept: set[int], shape: tuple[int, int]) -> str:
    """The image, with a dark cell where a token is gone."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", optimize=True)
    png = base64.b64encode(data.getvalue()).decode()
    height, width = (side * SIDE for side in shape)
    gone = "".join(
        f"M{SIDE * (i % shape[1])} {SIDE * (i // shape[1])}h{SIDE}v{SIDE}h-{SIDE}z"
        for i in range(shape[0] * shape[1])
        if i not in kept
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{len(kept)} of {shape[0] * shape[1]} tokens left">'
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" href="data:image/png;base64,{png}"/>'
        f'<path d="{gone}" fill="#0b0d12" opacity=".86" shape-rendering="crispEdges"/></svg>'
    )
