"""Chats of every kind, as lmms-eval has them, through real processors and models: batches answer as each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lmms_eval")

import saved

import foveate
from foveate.errors import ConfigError, InputError
from foveate.lab.asker import Asker, generation
from foveate.lab.chats import Chat, Frames, chat, question

IMAGES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl")
METHODS: dict[str, foveate.Method | None] = {"dense": None, "luvc": foveate.LUVC(), "fastv": foveate.FastV(ratio=0.4)}
OPTIONS = {"max_new_tokens": 5, "temperature": 0}


def asker(family: str) -> Asker:
    return Asker(*saved.load(family))


def pictures() -> list[Chat]:
    """Several images, images between words, several turns; of different sizes."""
    small, wide = saved.picture(24, 32, 1), saved.picture(40, 32, 2)
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "the cat"}, {"type": "image", "url": small}]},
        {"role": "assistant", "content": [{"type": "text", "text": "and"}]},
        {"role": "user", "content": [{"type": "image", "url": wide}, {"type": "text", "text": "the dog and the bird"}]},
    ]
    return [
        chat(question([small], "the dog"), Frames()),
        chat(question([wide, small], "the bird and the dog and the cat"), Frames()),
        chat(turns, Frames(), system="the bird"),
    ]


def alike(asker: Asker, chats: list[Chat]) -> list[str]:
    alone = [asker.generate([each], OPTIONS, 9)[0] for each in chats]
    together = asker.generate(chats, OPTIONS, 9)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert all((answer.cost is None) == (asker.handle is None) for answer in alone)
    return [answer.text for answer in alone]


@pytest.mark.parametrize("family", IMAGES)
def test_images(family: str) -> None:
    """Every family that the tests save to disk; the method changes what is spent."""
    them, chats = asker(family), pictures()
    for method in METHODS.values():
        with them.carrying(method):
            alike(them, chats)
            cost = them.generate(chats, OPTIONS, 9)[0].cost
            assert (cost is None) == (method is None)
            assert cost is None or 0 < cost.tokens < cost.full_tokens
    assert them.handle is None


@pytest.mark.parametrize("family", saved.VIDEO)
def test_videos(family: str, tmp_path: Path) -> None:
    """A path, a part of one, and two in one question."""
    film, other = saved.film(tmp_path / "a.mp4"), saved.film(tmp_path / "b.mp4", frames=7, seed=3)
    part = {"type": "video", "url": str(film), "video_start": 0.2, "video_end": 0.6}
    chats = [
        chat(question([str(film)], "the cat"), Frames(most=4)),
        chat(question([part, str(other)], "the dog and the bird"), Frames(most=4)),
    ]
    assert chats[0].films[0]["frames_indices"].tolist() == [0, 4, 7, 11]
    assert chats[1].films[0]["frames_indices"].tolist() == [2, 4, 5, 7]
    them = asker(family)
    with them.carrying(foveate.LUVC()):
        alike(them, chats)
    paced = chat(question([str(film)], "the cat"), Frames(most=4, fps=2))
    assert len(paced.films[0]["frames_indices"]) == 2, "two a second, and it lasts one"


def test_media_in_all_its_forms(tmp_path: Path) -> None:
    image = saved.picture(24, 32)
    image.save(tmp_path / "a.png")
    raw = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    made = chat(question([image, str(tmp_path / "a.png"), raw, [np.asarray(image)]], "x"), Frames())
    parts = made.messages[0]["content"]
    assert [part["type"] for part in parts] == ["image"] * 4 + ["text"]
    assert all(np.array_equal(np.asarray(part["image"]), np.asarray(image)) for part in parts[:4])
    assert made.media == (True, False)
    assert chat(question(None, "x"), Frames()).media == (False, False)


@pytest.mark.parametrize(
    ("visual", "sentence"),
    [
        ("nowhere.png", "the image 'nowhere.png' cannot be read: there is no such file"),
        ("nowhere.mp4", "the video 'nowhere.mp4' cannot be read"),
        (None, "the image (NoneType) cannot be read"),
        ("a.wav", "'audio'; only text, images and videos can be asked about"),
        ({"array": [0.0], "sampling_rate": 1}, "'audio'; only text, images and videos can be asked about"),
    ],
)
def test_what_cannot_be_seen(visual: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        chat(question([visual], "x"), Frames())


def test_losses_are_those_of_the_model() -> None:
    """Against the loss that transformers computes from labels, one ending at a time."""
    them = asker("qwen2_5_vl")
    first, second, _ = pictures()
    endings = {"the cat": 2, "dog": 1, "the bird and the dog": 5}  # tokens, after a space
    found = them.loss([first, second, first], list(endings))
    for each, (ending, n), (loss, greedy, cost) in zip((first, second, first), endings.items(), found):
        inputs = them.prepare([each], [ending])
        labels = inputs["input_ids"].clone()
        labels[:, :-n] = -100
        with torch.inference_mode():
            output = them.model(**inputs, labels=labels)
        assert loss == pytest.approx(float(output.loss), rel=1e-4)
        assert greedy == bool((output.logits[0, -n - 1 : -1].argmax(-1) == labels[0, -n:]).all())
        assert cost is None


def test_what_tasks_say_about_generation() -> None:
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    assert generation({}, 7) == {"max_new_tokens": 7, **greedy}
    mme = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    assert generation(mme, 7) == {"max_new_tokens": 16, "num_beams": 1, **greedy}
    assert generation({"until": ["\n"], "max_gen_toks": 3}, 7) == {"max_new_tokens": 3, **greedy}
    sampled = generation({"temperature": 0.5, "top_p": 0.9}, 7)
    assert sampled == {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "do_sample": True}
    half = {"temperature": 0.2, "do_sample": False}  # as mmvet has it
    assert generation(half, 7) == generation({"temperature": 0.0}, 7), "what is drawn by chance cannot be compared"
    with pytest.raises(ConfigError, match="sets 'num_beems' for generation, which transformers does not know"):
        generation({"num_beems": 2}, 7)


def test_answers_stop_where_the_task_says() -> None:
    them, (first, *_) = asker("qwen2_5_vl"), pictures()
    whole = them.generate([first], OPTIONS, 9)[0].text
    for stop in (whole[-1], whole[1:3]):
        found = them.generate([first], {**OPTIONS, "until": ["never", stop]}, 9)[0].text
        assert found == whole[: whole.index(stop)].strip() != whole
