"""A page's content: a real model's answers, and words that must not be taken for markup."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pages import METHODS, NASTY, Tell
from PIL import Image

import foveate_reference as reference
from foveate import Method, compress
from foveate.lab import prompting
from foveate.lab.loading import load
from foveate.lab.report import collect
from foveate.lab.story import Case, Content, Story, Told, tell


@pytest.fixture(scope="session")
def told() -> Tell:
    """The story of the reference model reading a scene with a method, and writing three words."""
    model, processor = load("reference")
    scene = reference.make_scene(reference.split_seed("test", 0))
    inputs = prompting.inputs_of(processor, [Image.fromarray(scene.image)], "color of star ?", "reference")

    def story(method: Method) -> Story:
        with compress(model, method) as handle, handle.trace() as trace, torch.inference_mode():
            model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
            return tell(trace(), handle.report())

    return story


@pytest.fixture(scope="session")
def content(told: Tell) -> Content:
    """Two images, the first with two questions; the second has a name and a question that look like markup."""
    methods = collect.methods_of(METHODS, (), ())
    stories = {label: told(method) for label, method in methods.items()}
    scene = Image.fromarray(reference.make_scene(reference.split_seed("test", 0)).image)
    wide = Image.new("RGB", (2000, 1000), (30, 120, 90))

    def case(name: str, image: Image.Image, prompt: str, answer: str, others: str) -> Case:
        answers = {label: Told(others, story, 0.5, 0.75, 0.5) for label, story in stories.items()}
        return Case(name, image, (), prompt, answer, "red", answers)

    return Content(
        "reference",
        "qwen2_5_vl",
        {label: repr(method) for label, method in methods.items()},
        (
            case("scene.png", scene, "color of star ?", "red", "red"),
            case("scene.png", scene, "where is it ?", "left", ""),
            case(f'"><{NASTY}.png', wide, NASTY, NASTY, f"{NASTY} too"),
        ),
    )


@pytest.fixture(scope="session")
def results() -> Path:
    """What a run of ``foveate eval`` wrote."""
    return Path(__file__).parents[3] / "benchmarks" / "results" / "systems-tokens-qwen2_5_vl.json"
