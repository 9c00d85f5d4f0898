"""As a user runs it: a model and its processor from a folder, chats with pictures and films, the pipeline."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils.import_utils import is_torchvision_available

import foveate
from foveate.lab import loading

if not is_torchvision_available():
    pytest.skip("video processors need torchvision", allow_module_level=True)
pytest.importorskip("av", reason="PyAV makes the film")

import saved
from saved import decoder, film, picture  # noqa: F401

FAMILIES = ("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl")
every = pytest.mark.parametrize("family", FAMILIES)
with_films = pytest.mark.parametrize("family", saved.VIDEO)

METHODS = {
    "stride": foveate.Stride(ratio=0.5, layers=(0, 2)),
    "fastv": foveate.FastV(),
    "visionzip": foveate.VisionZip(keep=0.4),
    "luvc": foveate.LUVC(),
    "ipcv": foveate.IPCV(min_tokens=0),
    "adsc": foveate.ADSC(),
    "downsample": foveate.Downsample(keep=0.5),
}
FULL = {
    "fastv": foveate.FastV(ratio=1.0),
    "luvc": foveate.LUVC(keep=1.0),
    "ipcv": foveate.IPCV(ratio=1.0),
    "adsc": foveate.ADSC(keep=1.0),
}

load = cache(saved.load)


def leaves_to_the_matrix(family: str, method: str = "", full: str = "", missing: Any = None) -> bool:
    """Llava and Qwen2.5-VL have all methods, the others by turns a few, as in `tests/test_probes.py`."""
    which = [*METHODS].index(method) if method else [*FULL].index(full) if full else 0
    return bool(method or full) and family not in FAMILIES[:2] and (which + FAMILIES.index(family)) % 3 > 0


def ask(text: str, *pictures: Any) -> list[dict[str, Any]]:
    """A chat of one question about pictures (images, or paths of films)."""
    parts = [
        {"type": "video", "path": str(part)} if isinstance(part, Path) else {"type": "image", "image": part}
        for part in pictures
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def chats(family: str) -> list[list[dict[str, Any]]]:
    """Questions of different lengths, with one picture each; and two turns with two."""
    small, wide = (24, 32), (24, 32) if family == "llava_next" else (32, 48)
    longer = ask("What is this?", picture(*small, seed=1))
    return [
        ask("Is there a cat?", picture(*small, seed=2)),
        ask("And how many birds are in this one, would you say?", picture(*wide, seed=3)),
        [
            *longer,
            {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
            *ask("What?", picture(*small)),
        ],
    ]


def pipe(family: str) -> Any:
    model, processor = load(family)
    return transformers.pipeline("image-text-to-text", model=model, processor=processor)


def said(outputs: Any) -> list[str]:
    return [output[0]["generated_text"] for output in outputs]


@every
def test_everything_comes_from_disk(family: str) -> None:
    model, processor = load(family)
    assert type(model).__name__.endswith("ForConditionalGeneration")
    assert processor.chat_template
    assert hasattr(processor, "video_processor") == (family in saved.VIDEO)


@every
@pytest.mark.parametrize("missing", [ImportError, OSError, ValueError])
def test_a_model_by_name_where_the_video_half_is_missing(
    family: str, missing: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without torchvision: for images the processor is the same, down to the number of placeholders."""
    _, whole = load(family)

    def refuse(*_: Any, **__: Any) -> Any:
        raise missing("requires torchvision")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", refuse)
    model, images_only = loading.load(str(saved.folder(family)))
    shown = picture(70, 100)
    text = whole.apply_chat_template(ask("What?", shown), add_generation_prompt=True)
    expected, inputs = (each(text=[text], images=[shown], return_tensors="pt") for each in (whole, images_only))
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    model(**inputs)  # stock code compares features and placeholders


@every
@pytest.mark.parametrize("full", FULL)
def test_with_nothing_removed_it_says_what_stock_says(family: str, full: str) -> None:
    pipeline = pipe(family)
    asked = dict(text=chats(family), return_full_text=False)
    expected = [said(pipeline(**asked, batch_size=n)) for n in (1, 2)]
    with foveate.compress(pipeline.model, FULL[full]):
        assert [said(pipeline(**asked, batch_size=n)) for n in (1, 2)] == expected
    assert len(set(expected[0])) > 1


@every
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_one_by_one(family: str, method: str) -> None:
    pipeline = pipe(family)
    asked = dict(text=chats(family), return_full_text=False)
    stock = said(pipeline(**asked))
    with foveate.compress(pipeline.model, METHODS[method]) as handle:
        alone = said(pipeline(**asked))
        assert handle.report().flops_ratio < 1
        assert said(pipeline(**asked, batch_size=3 if family != "llava_next" else 2)) == alone
    assert said(pipeline(**asked)) == stock


# -- films --------------------------------------------------------------------------------------------------------------


def inputs(family: str, conversations: Any) -> dict[str, Any]:
    """A batch as the processor makes it of chats, films read from disk, four frames of each."""
    _, processor = load(family)
    made = saved.FOUR_FRAMES[family] | dict(padding=True, return_tensors="pt")
    batch = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=made
    )
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def films(tmp_path: Path) -> list[list[dict[str, Any]]]:
    walking, larger = film(tmp_path / "a.mp4", seed=1), film(tmp_path / "b.mp4", height=64, width=64, seed=2)
    return [ask("What walks?", walking), ask("And what is in this film, and where does it go?", larger)]


@with_films
@pytest.mark.usefixtures("decoder")
def test_a_film_with_nothing_removed(family: str, films: Any) -> None:
    model, _ = load(family)
    batch = inputs(family, films)
    stock = model.generate(**batch)
    for method in FULL.values():
        with foveate.compress(model, method):
            assert torch.equal(model.generate(**batch), stock)


@with_films
@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("method", METHODS)
def test_films_one_by_one(family: str, method: str, films: Any) -> None:
    """A film is as many spans as the model sees frames of it, and what is left of one does not depend on the other."""
    model, _ = load(family)
    batch = inputs(family, films)
    with foveate.compress(model, METHODS[method]) as handle:
        together = model.generate(**batch)
        report = handle.report()
        for i, chat in enumerate(films):
            alone = model.generate(**inputs(family, [chat]))
            assert torch.equal(alone[0, -6:], together[i, -6:])
    places = int((batch["input_ids"] == saved.TOKENS[family]).sum())
    assert report.visual_tokens == places
    assert report.flops_ratio < 1
    if family != "internvl":
        assert len(report.visits[0].before) == 4  # two frames make one, in each of two films
    else:
        assert len(report.visits[0].before) == 8


@with_films
@pytest.mark.usefixtures("decoder")
def test_a_film_and_a_picture_in_the_pipeline(family: str, films: Any) -> None:
    pipeline = pipe(family)
    _, chat = films
    chat[0]["content"].insert(0, {"type": "image", "image": picture(24, 32)})
    asked = dict(text=[chat], return_full_text=False, processor_kwargs=saved.FOUR_FRAMES[family])
    stock = said(pipeline(**asked))
    with foveate.compress(pipeline.model, FULL["luvc"]):
        assert said(pipeline(**asked)) == stock
    with foveate.compress(pipeline.model, METHODS["stride"]) as handle:
        assert len(said(pipeline(**asked))) == 1
        assert handle.report().flops_ratio < 1
