"""Images that are encoded once: saved, loaded, asked about again, several of them in one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from calls import generate, modern
from torch import Tensor

import foveate
from foveate import Memory
from foveate.errors import InputError, UnsupportedModelError

pytestmark = modern
DYMU = foveate.ToMe(keep=0.5, positions="virtual")
METHODS = [foveate.VisionZip(keep=0.5), foveate.FastV(), foveate.ToMe() + foveate.Stride(keep=0.5, layers=(2,))]
PIXELS = ("pixel_values", "pixel_values_videos")


def without_pixels(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in PIXELS}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name())
@pytest.mark.parametrize("family", tiny.STRUCTURES)
def test_a_memory_stands_for_its_pixels(family: str, method: foveate.Method, tmp_path: Path) -> None:
    """On a handle that has never seen the images, several in a row; with beams, and in a forward."""
    model, other = tiny.model(family), tiny.model(family, fresh=True)
    batch = tiny.inputs(family, [[3, "image", 5, "image"], [2, "image", 4]])
    with torch.no_grad(), foveate.compress(model, method) as handle:
        expected, logits = generate(model, batch, num_beams=2), tiny.text_logits(model, batch)
        tokens = handle.report().layer_tokens
        handle.encode(batch).save(tmp_path / "seen")
    memory = Memory.load(tmp_path / "seen")
    assert memory.features.isfinite().all()
    with torch.no_grad(), foveate.compress(other, method) as handle:
        given = {**without_pixels(batch), "memory": memory}
        assert torch.equal(generate(other, given, num_beams=2), expected)
        assert torch.equal(tiny.text_logits(other, given), logits)
        assert handle.report().layer_tokens == tokens


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_one_memory_serves_many_prompts(family: str) -> None:
    model, image = tiny.model(family), tiny.inputs(family, [[1, "image", 1]])
    with torch.no_grad(), foveate.compress(model, foveate.VisionZip(keep=0.5) + foveate.FastV()) as handle:
        memory = handle.encode(image)
        for words in (2, 6):
            prompt = {**tiny.inputs(family, [[words, "image", 2 * words]]), "pixel_values": image["pixel_values"]}
            given = {**without_pixels(prompt), "memory": memory}
            assert torch.equal(tiny.text_logits(model, given), tiny.text_logits(model, prompt))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_several_memories_in_one_prompt(family: str) -> None:
    """In any order, blank images of one look among them."""
    model, method = tiny.model(family), foveate.VisionZip(keep=0.5)
    each = [tiny.inputs(family, [[1, "image", 1]], seed=seed) for seed in (1, 2)]
    each[0]["pixel_values"] = torch.zeros_like(each[0]["pixel_values"])
    both = tiny.inputs(family, [[3, "image", 2, "image", 4]])
    with torch.no_grad(), foveate.compress(model, method) as handle:
        memories = [handle.encode(batch) for batch in each]
        assert [memory.counts for memory in memories] == [[len(memory.features)] for memory in memories]
        for a, b in ((0, 1), (1, 0), (0, 0)):
            seen = {**both, "pixel_values": torch.cat([each[i]["pixel_values"] for i in (a, b)])}
            given = {**without_pixels(both), "memory": [memories[a], memories[b]]}
            torch.testing.assert_close(tiny.text_logits(model, given), tiny.text_logits(model, seen))


def test_a_video() -> None:
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[2, (3, 4, 8), 3]])
    with torch.no_grad(), foveate.compress(model, foveate.VisionZip(keep=0.5)) as handle:
        memory = handle.encode(batch)
        assert memory.kind == "video"
        given = {**without_pixels(batch), "memory": memory}
        assert torch.equal(tiny.text_logits(model, given), tiny.text_logits(model, batch))


def test_members_of_merged_tokens_are_kept(tmp_path: Path) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    with torch.no_grad(), foveate.compress(model, DYMU) as handle:
        handle.encode(batch).save(tmp_path / "seen")
        given = {**without_pixels(batch), "memory": Memory.load(tmp_path / "seen")}
        assert torch.equal(tiny.text_logits(model, given), tiny.text_logits(model, batch))


def test_mistakes(tmp_path: Path) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    text = without_pixels(batch)
    with foveate.compress(model, foveate.VisionZip(keep=0.5)) as handle:
        memory = handle.encode(batch)
        with pytest.raises(InputError, match=r"takes images or videos of this model, and was given no pixels"):
            handle.encode(text)
        with pytest.raises(InputError, match="memory= stands in place of pixel_values: leave pixel_values out"):
            model.generate(**batch, memory=memory)
        with pytest.raises(InputError, match="memory= holds a Tensor"):
            model(**text, memory=[memory.features])
        with pytest.raises(InputError, match="cannot write"):
            memory.save(tmp_path)
        (tmp_path / "junk").write_bytes(b"junk")
        with pytest.raises(InputError, match=r"is not what Memory\.save writes"):
            Memory.load(tmp_path / "junk")
        with pytest.raises(InputError, match=r"there is no file '.*nothing': Memory\.save writes one"):
            Memory.load(tmp_path / "nothing")
        stock = len(memory.images[0].patch)
        assert repr(memory).startswith(f"<Memory of 1 image: {len(memory.features)} of {stock} tokens, ")
        assert "from llava with VisionZip(" in repr(memory)
        two = without_pixels(tiny.inputs("llava", [[3, "image", 5, "image"]]))
        said = f"memory= holds 1 image, of {stock} tokens, and the prompts have places for {2 * stock}: give the memory"
        for call in (model, model.generate):
            with pytest.raises(InputError, match=said):
                call(**two, memory=memory)
            with pytest.raises(InputError, match="memory= holds 2 images, of"):
                call(**text, memory=[memory, memory])
    with pytest.raises(UnsupportedModelError, match=r"call encode\(\) before remove\(\)"):
        handle.encode(batch)


def test_a_memory_goes_where_it_was_made() -> None:
    """To another method it does where both do the same with the image, to another model never."""
    batch = tiny.inputs("llava", [[3, "image", 5]])
    model, text = tiny.model("llava"), without_pixels(batch)
    half, other = foveate.VisionZip(keep=0.5), tiny.build(tiny.config("llava"), seed=1)
    with foveate.compress(model, half) as handle:
        memory = handle.encode(batch)
    with foveate.compress(model, half + foveate.FastV()):
        model(**text, memory=memory)
    for method in (foveate.VisionZip(keep=0.25), foveate.FastV()):
        with foveate.compress(model, method), pytest.raises(InputError, match="this memory was made with VisionZip"):
            model.generate(**text, memory=memory)
    with foveate.compress(other, half), pytest.raises(InputError, match="another llava, whose projector"):
        other(**text, memory=memory)
    sentence = "is of a llava with 64 channels, and the model is a qwen2_vl with 64"
    strange = tiny.model("qwen2_vl")
    with foveate.compress(strange, foveate.FastV()), pytest.raises(InputError, match=sentence):
        strange.generate(**text, memory=memory)


def test_loading_needs_no_model(tmp_path: Path) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    with foveate.compress(model, foveate.VisionZip(keep=0.5)) as handle:
        handle.encode(batch).save(tmp_path / "seen")
    assert foveate.Memory.load(tmp_path / "seen").counts == [18]
