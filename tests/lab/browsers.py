"""A real Chromium for tests of pages; where there is none, their file is skipped, unless ``make test-browser`` wants it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

sync_api: Any = None
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
with suppress(ImportError):
    from playwright import sync_api

PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}


def skip_without() -> None:
    """Skip the test file that calls this where nothing can open a page."""
    if os.environ.get("FOVEATE_BROWSER") == "required":
        return
    if sync_api is None:
        pytest.skip("playwright is missing: pip install playwright, or make test-browser", allow_module_level=True)
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium, or make test-browser", allow_module_level=True)


@contextmanager
def running() -> Iterator[Any]:
    """The browser."""
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
