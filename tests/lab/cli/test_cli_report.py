"""``foveate report``: the page that it writes, of drawn scenes, of one's own images and models, and what may go wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from command import Here, as_json, draw, needs_weights
from PIL import Image

TEMPLATE = (
    "{%% for part in messages[0].content %%}{%% if part.type == 'image' %%} %s "
    "{%% else %%}{{ part.text }}{%% endif %%}{%% endfor %%}"
)
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "systems-tokens-llava.json"


def data_of(path: Path) -> Any:
    """What the page's script is given."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(found)


@needs_weights
def test_drawn_scenes_with_their_questions(here: Here, tmp_path: Path) -> None:
    found = as_json(here("report", "--scenes", "2", "--results", str(RESULTS), "--json"))
    data = data_of(tmp_path / found["page"])
    assert [method["label"] for method in data["methods"]] == ["luvc", "ipcv", "adsc"]
    assert len(data["cases"]) == len(found["questions"]) == 8
    assert [group["title"] for group in data["curves"]] == ["llava"]
    right = sum(case["dense"] == case["truth"] for case in data["cases"])
    assert right >= 5, "it is the model that answers"
    for case, said in zip(data["cases"], found["questions"]):
        assert said["answers"] == {
            "dense": case["dense"],
            **dict(zip(("luvc", "ipcv", "adsc"), (t["answer"] for t in case["told"]))),
        }
        assert said["spent"]["luvc"]["flops"] < 1
        assert said["spent"]["ipcv"]["kv"] == 1
    states = {
        name: {s for t in data["cases"][0]["told"] for f in t["frames"] for s in f["states"]} for name in ("all",)
    }
    assert states["all"] >= set("amprdw")


@needs_weights
def test_my_images_and_prompts(here: Here, tmp_path: Path) -> None:
    draw(tmp_path / "one.png")
    draw(tmp_path / "<b>two&.png", 1, size=(200, 120))
    words = ("report", "--image", "one.png", "--image", "<b>two&.png", "--prompt", "texture of background ?")
    options = ("--method", "fastv", "--method", "tome+vtw", "--option", "fastv.layer=4", "--option", "vtw.layer=3")
    done = here(*words, *options, "--out", "new/page.html")
    assert done.returncode == 0, done.stderr
    assert "open new/page.html in a browser" in done.stdout
    data = data_of(tmp_path / "new" / "page.html")
    assert [case["name"] for case in data["cases"]] == ["one.png", "<b>two&.png"]
    assert [method["label"] for method in data["methods"]] == ["fastv(layer=4)", "tome+vtw(layer=3)"]
    assert all(case["truth"] is None and case["prompt"] == words[-1] for case in data["cases"])
    grids = [case["told"][0]["full"][0] for case in data["cases"]]
    assert grids[0] == 100
    assert grids[1] != 100
    again = here(*words, *options, "--out", "new/page.html")
    assert again.returncode == 2
    assert "'new/page.html' is there already: give --out" in again.stderr
    described = ("--method-json", '{"method": "random", "keep": 0.1}', "--method-json", '{"method": "random"}')
    assert here(*words, *described, "--out", "new/page.html", "--overwrite").returncode == 0
    data = data_of(tmp_path / "new" / "page.html")
    assert [method["label"] for method in data["methods"]] == ["random(keep=0.1)", "random"]


@needs_weights
def test_several_questions_about_one_image(here: Here, tmp_path: Path) -> None:
    draw(tmp_path / "one.png")
    words = ("--image", "one.png", "--prompt", "color of star ?", "--prompt", "count of star ?")
    found = as_json(here("report", *words, "--model", "reference-llava", "--method", "vtw", "--json"))
    assert [each["question"] for each in found["questions"]] == ["color of star ?", "count of star ?"]
    assert len(data_of(tmp_path / found["page"])["pictures"]) == 1


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_a_saved_model_of_another_family(here: Here, tmp_path: Path, family: str) -> None:
    folder = tmp_path / "model"
    processor = tiny.processor(family)
    place = {"llava_next": "<image>", "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>"}[family]
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATE % place
    processor.save_pretrained(folder)
    tiny.model(family).save_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    words = ["report", "--model", "model", "--image", "noise.png", "--prompt", "word1 word2", "--new-tokens", "3"]
    found = as_json(here(*words, "--method", "visionzip+vtw", "--option", "vtw.layer=2", "--json"))
    data = data_of(tmp_path / found["page"])
    assert data["family"] == family
    (told,) = data["cases"][0]["told"]
    assert told["tokens"][-1] == 0
    over = [picture for _, picture in told["shown"][0]]
    if family == "qwen3_vl":
        assert over == [data["cases"][0]["image"]]
    else:
        assert len(over) == len(set(over)) == len(data["pictures"]) - 1 > 1, "each tile lies on its own picture"
        assert {picture for _, picture in told["shown"][-1]} == {None}, "joined tiles lie nowhere that is known"


MISTAKES = {
    "a missing image": (("--image", "none.png", "--prompt", "x"), "there is no image 'none.png'"),
    "not an image": (("--image", "text.png", "--prompt", "x"), "'text.png' is not an image"),
    "half an image": (("--image", "cut.png", "--prompt", "x"), "cannot read the image 'cut.png'"),
    "no prompt": (("--image", "one.png"), "1 --image and 0 --prompt"),
    "an empty prompt": (("--image", "one.png", "--prompt", " "), "the prompt is empty"),
    "numbers that do not fit": (
        ("--image", "one.png", "--image", "one.png", *("--prompt", "x") * 3),
        "2 --image and 3 --prompt: give one prompt for each image",
    ),
    "a prompt without an image": (("--prompt", "x"), "--prompt needs --image"),
    "a model without an image": (
        ("--model", "somebody/something"),
        "give --image and --prompt for 'somebody/something'",
    ),
    "no scenes": (("--scenes", "0"), "--scenes 0: choose 1 to 100"),
    "a seed that has no scenes": (("--seed", "-1"), "--seed -1: "),
    "unknown method": (("--method", "fastvv"), "there is no method 'fastvv'"),
    "a method twice": (("--method", "tome", "--method", "tome"), "a method is given twice"),
    "an option of nobody": (("--option", "keep=0.1"), "say --method, too"),
    "an option of which": (("--method", "tome", "--method", "vtw", "--option", "keep=0.1"), "name one, e.g."),
    "unknown dtype": (("--dtype", "int8"), "choose auto, float32"),
    "a page that is there": (("--out", "text.png"), "'text.png' is there already: give --out"),
    "a folder as page": (("--out", "empty"), "'empty' is a folder: name a file"),
    "a page in a file": (("--out", "text.png/page.html"), "'text.png' is a file"),
    "no results": (("--results", "none.json"), "there is no file 'none.json'"),
    "results that are none": (
        ("--results", "other.json"),
        "'other.json' is not a results.json of `foveate eval`: 'rows'",
    ),
    "broken results": (("--results", "text.png"), "cannot read 'text.png' as JSON"),
    "a bench that is none": (("--bench", "other.json"), "'other.json' is not a JSON of `foveate bench`"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(here: Here, tmp_path: Path, name: str) -> None:
    draw(tmp_path / "one.png")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "one.png").read_bytes()[:3000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text("{}")
    before = {path.name for path in tmp_path.iterdir()}
    words, sentence = MISTAKES[name]
    done = here("report", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "text.png").read_text() == "not an image"
