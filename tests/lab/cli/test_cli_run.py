"""``foveate run`` on the reference model and on a saved model of another family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from command import Here, as_json, draw, foveate, needs_weights
from PIL import Image

import foveate as foveate_library
import foveate_reference as reference
from foveate import method_from_dict


@needs_weights
def test_reference_model_with_a_sum_of_methods(tmp_path: Path) -> None:
    """The whole way, in a process of its own; other tests of commands call the entry point in theirs."""
    scene = draw(tmp_path / "one.png")
    draw(tmp_path / "[two].png", 1, size=(200, 120))  # rich would take the brackets for markup
    words = ["run", "--image", "one.png", "--image", "[two].png", "--prompt", "texture of background ?"]
    words += ["--method", "divprune+fastv", "--option", "divprune.keep=0.75", "--option", "fastv.layer=3"]
    done = foveate(*words, "--overlay", "pictures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torchvision" not in done.stderr, "what transformers says about itself is noise here"
    assert "DivPrune(keep=0.75) + FastV(layer=3" in done.stdout
    assert "stock model" in done.stdout
    assert "decoder 3       fastv" in done.stdout
    assert "02-[two]-divprune+fastv.png" in done.stdout
    assert "texture of background ?" in done.stdout
    pictures = [Image.open(path) for path in sorted((tmp_path / "pictures").iterdir())]
    assert len(pictures) == 2
    assert pictures[0].size != pictures[1].size
    assert scene.image.shape == (160, 160, 3)


@needs_weights
def test_json_and_a_method_from_a_file(here: Here, tmp_path: Path) -> None:
    """The saved folder, loaded as any other model would be, not by name."""
    scene = draw(tmp_path / "one.png")
    question = next(q for q in reference.ask(scene, reference.split_seed("test", 0)) if q.task == "texture")
    (tmp_path / "method.json").write_text('{"method": "stride", "ratio": 0.5, "layers": [1, 3]}')
    words = ["run", "--model", str(reference.PATHS["qwen2_5_vl"]), "--image", "one.png", "--prompt", question.text]
    words += ["--method-json", "method.json", "--dtype", "float32", "--attn", "eager"]
    found = as_json(here(*words, "--json"))
    assert found["family"] == "qwen2_5_vl"
    assert found["dense"]["answer"] == question.answer
    assert found["answer"]
    assert method_from_dict(found["method"]) == method_from_dict((tmp_path / "method.json").read_text())
    assert [visit["after"] for visit in found["report"]["visits"]] == [[50], [25]]
    assert found["overlays"] == []


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_saved_model_of_another_family(here: Here, tmp_path: Path, family: str) -> None:
    folder = tmp_path / "model"
    processor = tiny.processor(family)
    places = {"llava": "<image>", "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
    template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %} " + places[family] + " "
        "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    )
    processor.chat_template = processor.tokenizer.chat_template = template
    processor.save_pretrained(folder)
    tiny.model(family).save_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    words = ["run", "--model", "model", "--image", "noise.png", "--prompt", "word1 word2", "--method", "fastv"]
    words += ["--new-tokens", "3", "--no-compare", "--overlay", "pictures", "--json"]
    found = as_json(here(*words))
    assert found["family"] == family
    assert found["dense"] is None
    assert found["report"]["decode_steps"] == 2
    (visit,) = found["report"]["visits"]
    assert visit["after"] == [round(visit["before"][0] / 2)]
    # LLaVA's processor crops to a square; the picture shows what the model saw.
    panel = np.asarray(Image.open(tmp_path / found["overlays"][0]))
    assert panel.shape[0] == (310 if family == "llava" else 230)


@needs_weights
def test_what_a_handle_has_saved(here: Here, tmp_path: Path) -> None:
    """One question, and a file of them."""
    draw(tmp_path / "one.png")
    model, _ = reference.load("llava")
    with foveate_library.compress(model, "divprune", keep=0.25) as handle:
        handle.save_pretrained(tmp_path / "mine")
    asked = ("run", "--model", "reference-llava", "--adapter", "mine", "--new-tokens", "1")
    found = as_json(here(*asked, "--image", "one.png", "--prompt", "texture of background ?", "--json"))
    assert found["method"]["keep"] == 0.25
    assert found["report"]["visits"][0]["after"] == [25]
    (tmp_path / "mine.jsonl").write_text('{"image": "one.png", "prompt": "texture of background ?"}')
    assert as_json(here(*asked, "--data", "mine.jsonl", "--json"))["answered"] == 1
    assert found["answer"] in (tmp_path / "answers.jsonl").read_text()
    done = here(*asked, "--method", "tome", "--image", "one.png", "--prompt", "a")
    assert done.returncode == 2
    assert "--adapter has the method and its options" in done.stderr
