"""What only a run tells, for pages that are made without one: ``python tools/pages/lists.py`` writes these files.

``pairs.json``: which method runs on which family. foveate itself is asked, on every family's default config; models are built
without memory (torch's meta device), so the depths are those of real checkpoints and no weight is made.
``served.json``: which methods a vLLM server takes, on some family at least.
``survivors.json``: what the shipped model answers about one image, whole and compressed.

`tests/docs/test_asked.py` compares them with what foveate says today.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import facts
import torch
import verdicts
from PIL import Image
from repository import ROOT
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, logging

import foveate
import foveate_reference as reference
from foveate import FoveateError, Method
from foveate.methods import own_methods
from foveate.models import list_families
from foveate.serialise import options_of

FAMILY_TABLES: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "family_tables.py"))
#: Depths that are tried where the default one is refused.
DEEPEST = 12

SCENE, QUESTION = 12, "color of cross ?"
KEEP = 0.25
METHODS: tuple[Method, ...] = (foveate.Random(keep=KEEP), foveate.VisionZip(keep=KEEP), foveate.DivPrune(keep=KEEP))


@cache
def pairs(names: tuple[str, ...] | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Family (all, or some) -> method -> ``options`` that must be set so that it runs (None: it does not), and the ``sentence``
    that `foveate.compress` says of the method with its defaults ("": it takes it)."""
    found = {}
    for name, family in list_families().items():
        if family.model_type not in CONFIG_MAPPING or not (names is None or name in names):  # of a newer transformers
            continue
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(FAMILY_TABLES["config_of"](family))
        found[name] = {method: _ask(model, cls()) for method, cls in own_methods().items()}
    return found


def served() -> dict[str, bool]:
    """Method -> whether there is a plan for it."""
    return {name: bool(verdicts.verdict(name).served) for name in own_methods()}


def scene() -> Image.Image:
    """An image that no reference model has seen."""
    return Image.fromarray(reference.make_scene(reference.split_seed("test", SCENE)).image)


def survivors() -> dict[str, Any]:
    """The question about `scene`, and for the stock model and each of `METHODS` what is left and answered."""
    drawn = reference.make_scene(reference.split_seed("test", SCENE))
    question = next(one for one in reference.ask(drawn, seed=SCENE) if one.text == QUESTION)
    logging.disable_progress_bar()
    model, processor = reference.load()
    panels = [_panel(model, processor, scene(), question.text, method) for method in (None, *METHODS)]
    return {"question": question.text, "right": question.answer, "panels": panels}


FILES: dict[Path, Callable[[], Any]] = {facts.PAIRS: pairs, facts.SERVED: served, facts.SURVIVORS: survivors}


def write() -> None:
    """The files, and the image."""
    scene().save(facts.SCENE, optimize=True)
    for file, told in FILES.items():
        file.write_text(json.dumps(told(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _ask(model: Any, method: Method) -> dict[str, Any]:
    sentence = _refusal(model, method)
    if not sentence:
        return {"options": {}, "sentence": ""}
    for option, value in _depths(method):
        changes: dict[str, Any] = {option: value}
        if not _refusal(model, replace(method, **changes)):
            return {"options": changes, "sentence": sentence}
    return {"options": None, "sentence": sentence}


def _refusal(model: Any, method: Method) -> str:
    try:
        # What a method learns is as large as the model says, and nobody needs its numbers: nor a word that they are random.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            foveate.compress(model, method).remove()
    except FoveateError as error:
        return str(error)
    return ""


def _depths(method: Method) -> Iterator[tuple[str, int]]:
    """Later depths for the one option that says where a method acts, if it has one."""
    for option, (hint, _) in options_of(type(method)).items():
        if option in ("layer", "block") and (hint is int or int in typing.get_args(hint)):
            yield from ((option, value) for value in range(1 + (getattr(method, option) or 0), DEEPEST + 1))


def _panel(model: Any, processor: Any, image: Image.Image, question: str, method: Method | None) -> dict[str, Any]:
    """The answer, the raster indices of what is left, and the grid."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
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
    name = f"{type(method).__name__}(keep={KEEP:g})" if method else ""
    answer = processor.decode(ids[0, -1:]).strip()
    return {"method": name, "answer": answer, "grid": [height, width], "kept": sorted(kept)}
