"""What tests of the lab share: what measures need, and the model with a pretrained language model, tiny and untrained."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_language


@pytest.fixture
def what_is_there_stays() -> None:
    """Measurements collect garbage before each call, which takes a second where other tests have left a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that has all of it."""
    return tiny_language.fill_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def smollm2(smollm2_cache: Path) -> Iterator[str]:
    """What the command line calls it, while it is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_CACHE", str(smollm2_cache))
        patch.setattr("foveate_reference.language.model.FOLDER", smollm2_cache / "package")
        yield "reference-smollm2"
