"""Local tasks, written once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tasks of `tasks.write`."""
    import tasks

    return tasks.write(tmp_path_factory.mktemp("tasks"))
