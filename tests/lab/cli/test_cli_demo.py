"""``foveate demo``: what it prints, what its JSON says, and the pictures it writes."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Here, as_json, needs_weights
from PIL import Image

from foveate.lab import demo

pytestmark = needs_weights
CONTROLS = {"random", "stride", "downsample"}


def test_tables_and_json(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is played once is shown in both ways."""
    played: list[demo.Demo] = []
    play = demo.play

    def once(*asked: Any) -> demo.Demo:
        if not played:
            played.append(play(*asked))
        return played[0]

    monkeypatch.setattr(demo, "play", once)
    shown = here("demo", "--quick", "--keep", "0.5", "--out", "pictures")
    assert shown.returncode == 0, shown.stderr
    for part in ("image 1", "truth", "dense", "FLOPs", "100 → 50, decoder 0", "pictures", "Times are left out"):
        assert part in shown.stdout
    assert not re.search(r"KV +time", shown.stdout)
    assert "pictures/report.html" in shown.stdout
    assert ' ?"' in (tmp_path / "pictures" / "report.html").read_text()
    found = as_json(here("demo", "--quick", "--json", "--out", "pictures", "--overwrite"))
    methods = {method["name"]: method for method in found["methods"]}
    assert {"fastv", "v2drop", "vtw", "divprune", "visionzip", "tome"} | CONTROLS <= set(methods)
    assert {question["image"] for question in found["questions"]} == {1, 2}
    for question in found["questions"]:
        assert set(question["answers"]) == {"dense", *methods}
    for name, method in methods.items():
        right = sum(q["answers"][name] == q["truth"] for q in found["questions"])
        assert method["right"] == right
        assert abs(method["mean_tokens"] - 50) < 2.5, "a comparison needs one budget"
        assert method["tokens"][0] == found["visual_tokens"] == 100
        assert all(after < before for before, after in pairwise(method["tokens"]))
        assert 0 < method["flops_ratio"] < 1
        assert 0 < method["kv_ratio"] < 1
        assert method["time_ratio"] is None, "two scenes say nothing of time"
    # A machine may round differently, so this is loose: the model sees, and it is not the method that answers.
    assert found["dense"]["accuracy"] > 0.6

    assert (tmp_path / found["page"]).read_text().startswith("<!doctype html>")
    pictures = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "pictures").glob("*.png")}
    assert len(pictures) == len(found["overlays"]) == 2 * (len(methods) + 1)
    assert all((tmp_path / path).is_file() for path in found["overlays"])
    for first, second in pairwise(sorted(methods)):
        one, other = pictures[f"image-01-{first}.png"], pictures[f"image-01-{second}.png"]
        assert one.shape != other.shape or (one != other).any()
    assert (pictures["image-01-fastv.png"] != pictures["image-02-fastv.png"]).any()
