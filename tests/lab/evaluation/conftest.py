"""The reference models under test, loaded once."""

from __future__ import annotations

from functools import cache

import pytest

import foveate_reference as reference
from foveate.lab.checks import REFERENCES
from foveate.lab.evaluation.fidelity.stock import Stock, load_stock
from foveate.lab.evaluation.subject import Subject, load

#: What the command line calls the models.
WORDS = {name: word for word, name in REFERENCES.items()}


@pytest.fixture(scope="session", params=reference.ARCHITECTURES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return loaded(request.param)


@pytest.fixture(scope="session")
def qwen() -> Subject:
    return loaded("qwen2_5_vl")


def loaded(name: str) -> Subject:
    if not (reference.PATHS[name] / "model.safetensors").is_file():
        pytest.skip(f"the weights of the reference model {name!r} are missing")
    return load(WORDS[name])


@pytest.fixture(scope="session", params=reference.ARCHITECTURES)
def stock(request: pytest.FixtureRequest) -> Stock:
    return stocked(request.param)


@pytest.fixture(scope="session")
def stock_qwen() -> Stock:
    return stocked("qwen2_5_vl")


@cache
def stocked(name: str) -> Stock:
    if not (reference.PATHS[name] / "model.safetensors").is_file():
        pytest.skip(f"the weights of the reference model {name!r} are missing")
    return load_stock(WORDS[name], None, "auto", "cpu", None)
