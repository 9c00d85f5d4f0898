"""The reference models under test, loaded once."""

from __future__ import annotations

import pytest

from foveate import reference
from foveate.evaluation.subject import Subject, load


@pytest.fixture(scope="session", params=reference.ARCHITECTURES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return loaded(request.param)


@pytest.fixture(scope="session")
def qwen() -> Subject:
    return loaded("qwen2_5_vl")


def loaded(name: str) -> Subject:
    if not (reference.PATHS[name] / "model.safetensors").is_file():
        pytest.skip(f"the weights of the reference model {name!r} are missing")
    return load(name, None)
