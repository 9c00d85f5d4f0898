"""The reference models under test, loaded once."""

from __future__ import annotations

from functools import cache

import pytest

import foveate_reference as reference
from foveate.lab.asker import Asker
from foveate.lab.checks import REFERENCES
from foveate.lab.evaluation.reference import load_subject

#: What the command line calls the models.
WORDS = {name: word for word, name in REFERENCES.items()}


@pytest.fixture(scope="session", params=reference.ARCHITECTURES)
def subject(request: pytest.FixtureRequest) -> Asker:
    return loaded(request.param)


@pytest.fixture(scope="session")
def qwen() -> Asker:
    return loaded("qwen2_5_vl")


@cache
def loaded(name: str) -> Asker:
    if not (reference.PATHS[name] / "model.safetensors").is_file():
        pytest.skip(f"the weights of the reference model {name!r} are missing")
    return load_subject(WORDS[name])
