"""``foveate demo``: what it prints, what its JSON says, and the pictures it writes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from command import Here, as_json, foveate, needs_weights
from PIL import Image

pytestmark = needs_weights
CONTROLS = {"random", "stride", "downsample"}


def test_json(tmp_path: Path) -> None:
    done = foveate("demo", "--quick", "--json", "--out", "pictures", cwd=tmp_path)
    assert "torchvision" not in done.stderr, "what transformers says about itself is noise here"
    found = as_json(done)
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
        assert method["time_ratio"] > 0
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


def test_tables(here: Here, tmp_path: Path) -> None:
    done = here("demo", "--scenes", "1", "--seed", "3", "--keep", "0.3")
    assert done.returncode == 0, done.stderr
    for part in ("image 1", "truth", "dense", "FLOPs", "100 → 30, decoder 0", "demo-output"):
        assert part in done.stdout
    assert (tmp_path / "demo-output" / "image-01-all.png").is_file()
    assert "demo-output/report.html" in done.stdout
    assert ' ?"' in (tmp_path / "demo-output" / "report.html").read_text()
