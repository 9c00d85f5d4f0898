"""The store is no package: its modules are found as `benchmarks/store.py` finds them."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from checkout import COUNT, EXPERIMENT, PAGE, TABLES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with one experiment, not run yet."""
    for folder in ("experiments", "results", "tables"):
        (tmp_path / "benchmarks" / folder).mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "experiments" / "counts.yaml").write_text(EXPERIMENT)
    (tmp_path / "benchmarks" / "tables" / "shown.py").write_text(TABLES)
    (tmp_path / "count.py").write_text(COUNT)
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "docs" / "results.md").write_text("<!-- table: experiments --><!-- /table -->\n")
    return tmp_path
