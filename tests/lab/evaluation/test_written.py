"""What a run leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.lab.evaluation.report import Content, write_files
from foveate.lab.evaluation.store import JSON, MARKDOWN
from foveate.lab.terminal import CommandError


def test_each_kind_of_content(tmp_path: Path) -> None:
    files: dict[str, Content] = {
        JSON: {"é": 1.5},
        MARKDOWN: "# é\n",
        "drawn.png": lambda path: path.write_bytes(b"png"),  # type: ignore[dict-item]
    }
    paths = write_files(tmp_path, files)
    assert [path.name for path in paths] == [JSON, MARKDOWN, "drawn.png"]
    assert json.loads(paths[0].read_text(encoding="utf-8")) == {"é": 1.5}
    assert paths[1].read_text(encoding="utf-8") == "# é\n"
    assert paths[2].read_bytes() == b"png"


def test_a_place_that_takes_no_file(tmp_path: Path) -> None:
    (tmp_path / JSON).mkdir()
    with pytest.raises(CommandError, match="cannot write the report to"):
        write_files(tmp_path, {JSON: {}})


def test_no_number_that_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_files(tmp_path, {JSON: {"nan": float("nan")}})
