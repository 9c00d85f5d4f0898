"""``foveate eval fidelity`` and ``foveate tune`` on one's own images, and what a person may get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Here, as_json, draw, needs_weights

pytestmark = needs_weights
METHOD = '{"method": "fastv", "layer": 4, "ratio": 0.25}'


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    lines = []
    for number in range(4):
        draw(tmp_path / "set" / f"{number}.png", number)
        lines.append(json.dumps({"image": f"{number}.png", "prompt": "color of star ?"}))
    path = tmp_path / "set" / "mine.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_fidelity_and_tune_of_ones_own_images(here: Here, mine: Path, tmp_path: Path) -> None:
    """What one finds, the other measures."""
    own = ("--model", "reference-llava", "--data", "set/mine.jsonl", "--new-tokens", "2")
    tuned = as_json(here("tune", *own, "--method", "vtw", "--max-kl", "5", "--out", "t", "--json"))
    assert tuned["method"]["method"] == "vtw"
    assert json.loads((tmp_path / "t" / "method.json").read_text()) == tuned["method"]
    described = ("--method-json", "t/method.json", "--method-json", METHOD, "--as-is")
    found = as_json(here("eval", "fidelity", *own, *described, "--out", "f", "--json"))
    assert found == json.loads((tmp_path / "f" / "results.json").read_text())
    assert [row["method"]["method"] for row in found["rows"]] == ["vtw", "fastv"]
    assert found["rows"][0]["method"] == tuned["method"]
    assert found["count"] == 4
    assert "--data set/mine.jsonl" in found["command"]


def test_tables_for_a_person(here: Here, mine: Path) -> None:
    asked = ("--image", "set/0.png", "--image", "set/1.png", "--prompt", "color of star ?", "--new-tokens", "2")
    done = here("eval", "fidelity", "--method-json", METHOD, "--as-is", *asked, "--out", "f")
    assert done.returncode == 0, done.stderr
    for part in (
        "2 prompts, without labels; answers of 2.0 tokens",
        "same answer",
        "fastv(layer=4, ratio=0.25)",
        "written: ",
    ):
        assert part in done.stdout
    assert "2 prompts say little" in done.stdout
    done = here(
        "tune", "--method-json", METHOD, "--budget", "0.6", "--by", "tokens", "--trials", "2", *asked, "--out", "t"
    )
    assert done.returncode == 0, done.stderr
    for part in ("Looked for the least KL for 0.6 of the visual tokens", "raise --trials", "held out", "t/method.json"):
        assert part in done.stdout


MISTAKES = {
    "missing file": (("--data", "none.jsonl"), "there is no file 'none.jsonl'"),
    "missing image": (("--image", "none.png", "--prompt", "What?"), "there is no image 'none.png'"),
    "image without a prompt": (("--image", "set/0.png"), "1 --image and 0 --prompt"),
    "broken image": (("--image", "broken.png", "--prompt", "What?"), "broken.png"),
    "no images in the data": (("--data", "text.jsonl"), "line 1 of 'text.jsonl': no image"),
    "missing model": (("--model", "./none", "--data", "set/mine.jsonl"), "there is no model folder"),
    "unknown dtype": (("--dtype", "int3", "--data", "set/mine.jsonl"), "--dtype 'int3'"),
    "unknown device": (("--device", "abacus", "--data", "set/mine.jsonl"), "--device 'abacus'"),
    "out is a file": (("--data", "set/mine.jsonl", "--new-tokens", "1"), "'file"),
}


@pytest.mark.parametrize("command", ["eval", "tune"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(here: Here, mine: Path, tmp_path: Path, mistake: str, command: str) -> None:
    (tmp_path / "file").write_text("here first")
    (tmp_path / "broken.png").write_bytes((tmp_path / "set" / "0.png").read_bytes()[:50])
    (tmp_path / "text.jsonl").write_text('{"prompt": "What?"}')
    words, sentence = MISTAKES[mistake]
    start = ("eval", "fidelity", "--as-is") if command == "eval" else ("tune", "--max-kl", "0.1")
    out = "file" if mistake == "out is a file" else "out"
    done = here(*start, "--method", "vtw", "--out", out, *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists(), "nothing has begun"
    assert (tmp_path / "file").read_text() == "here first"
