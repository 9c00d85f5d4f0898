"""Measurements collect garbage before each call, which takes a second where other tests have left a million objects."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _what_is_there_stays() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()
