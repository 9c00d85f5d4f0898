"""Data sets are cached in the test's own folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import datasets  # noqa: F401
    except ImportError:
        return
    folder: Path = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(sys.modules["datasets"].config, "HF_DATASETS_CACHE", str(folder))
