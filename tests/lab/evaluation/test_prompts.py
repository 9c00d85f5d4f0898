"""Prompts from files and words, and what a person may get wrong there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from foveate.errors import InputError
from foveate.lab.asker import Asker
from foveate.lab.evaluation.forced import asked
from foveate.lab.evaluation.questions import drawn, from_file, from_words, grouped, of_benchmark
from foveate.lab.terminal import CommandError
from foveate_reference.data import samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number, size in enumerate(((40, 30), (20, 20), (40, 30))):
        Image.new("RGB", size, (number * 40, 90, 10)).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "pictures" / "0.png").read_bytes()[:40])
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


def written(folder: Path, *lines: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_a_file(folder: Path) -> None:
    path = written(
        folder,
        {"image": "pictures/0.png", "prompt": "What is it?", "other": 3},
        "",
        {"images": ["pictures/1.png", str(folder / "pictures" / "2.png")], "prompt": "Which?", "id": "two"},
    )
    one, two = from_file(path)
    assert (one.id, one.text, one.sizes) == ("1", "What is it?", ((40, 30),))
    assert (two.id, two.text, two.sizes) == ("two", "Which?", ((20, 20), (40, 30)))
    assert [image.getpixel((0, 0)) for image in two.opened()] == [(40, 90, 10), (80, 90, 10)]
    assert all(image.mode == "RGB" for image in two.opened())


def test_the_digest_is_of_text_and_pixels(folder: Path) -> None:
    path = folder / "pictures" / "0.png"
    first = from_words([path], ["What?"])[0].digest
    assert from_words([path], ["What?"])[0].digest == first
    assert from_words([path], ["Who?"])[0].digest != first
    Image.new("RGB", (40, 30), (0, 90, 11)).save(path)
    assert from_words([path], ["What?"])[0].digest != first


GOOD = '{"image": "pictures/0.png", "prompt": "What?"}'
BAD = {
    "nothing in it": ((), "has no prompt: write one a line"),
    "blank lines": (("", "  "), "has no prompt: write one a line"),
    "not JSON": ((GOOD, "{image}"), "line 2 of .* not JSON"),
    "not an object": (("[1]",), "line 1 of .* a prompt is an object"),
    "no image": (('{"prompt": "What?"}',), "no image: give `image`, a path"),
    "no images": (('{"prompt": "What?", "images": []}',), "no image: give `image`, a path"),
    "images that are no list": (('{"prompt": "What?", "images": "a.png"}',), "`images`, a list of paths"),
    "images that are no paths": (('{"prompt": "What?", "images": [3]}',), "`images`, a list of paths"),
    "a name that is misspelt": (
        ('{"prompt": "What?", "imgae": "a.png"}',),
        "no field 'imgae' .the nearest is 'image'.",
    ),
    "both": (('{"prompt": "What?", "image": "a", "images": ["b"]}',), "give `image` or `images`, not both"),
    "no prompt": (('{"image": "pictures/0.png"}',), "no `prompt`: give the text"),
    "an empty prompt": (('{"image": "pictures/0.png", "prompt": " "}',), "the prompt is empty"),
    "a strange id": (('{"image": "pictures/0.png", "prompt": "What?", "id": []}',), "`id` is a text or a number"),
    "missing image": (('{"image": "pictures/9.png", "prompt": "What?"}',), "line 1 of .* there is no image .*9.png"),
    "broken image": ((GOOD, '{"image": "broken.png", "prompt": "What?"}'), "line 2 of .*broken.png"),
    "text as image": (('{"image": "text.png", "prompt": "What?"}',), "is not an image that Pillow can read"),
    "a folder": (('{"image": "pictures", "prompt": "What?"}',), "is a folder, not an image file"),
    "an id twice": ((GOOD, '{"image": "pictures/0.png", "prompt": "What?", "id": 1}'), "the id '1' is that of line 1"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_bad_files(folder: Path, mistake: str) -> None:
    lines, sentence = BAD[mistake]
    with pytest.raises(CommandError, match=sentence):
        from_file(written(folder, *lines))


def test_files_that_are_none(folder: Path) -> None:
    with pytest.raises(CommandError, match="there is no file"):
        from_file(folder / "none.jsonl")
    with pytest.raises(CommandError, match="cannot read"):
        from_file(folder / "pictures")
    with pytest.raises(CommandError, match="is not text in UTF-8"):
        from_file(folder / "pictures" / "0.png")


def test_words(folder: Path) -> None:
    images = [folder / "pictures" / f"{number}.png" for number in range(3)]
    assert [prompt.text for prompt in from_words(images, ["What?"])] == ["What?"] * 3
    assert [(p.id, p.images, p.text) for p in from_words(images[:2], ["A?", "B?"])] == [
        ("1", (images[0],), "A?"),
        ("2", (images[1],), "B?"),
    ]
    assert [(p.images, p.text) for p in from_words(images[:1], ["A?", "B?"])] == [
        ((images[0],), "A?"),
        ((images[0],), "B?"),
    ]
    with pytest.raises(CommandError, match="3 --image and 2 --prompt: give one prompt for each image"):
        from_words(images, ["A?", "B?"])
    with pytest.raises(CommandError, match="add --prompt"):
        from_words(images, [])
    with pytest.raises(CommandError, match="add --image"):
        from_words([], ["A?"])


def test_the_benchmark_in_squares() -> None:
    (whole,) = of_benchmark(samples(tasks=("document",), per_task=1), 0)
    (cut,) = of_benchmark(samples(tasks=("document",), per_task=1), 160)
    assert whole.sizes == ((320, 320),)
    assert cut.sizes == ((160, 160),) * 4
    assert whole.opened()[0].crop((160, 0, 320, 160)).tobytes() == cut.opened()[1].tobytes()


def test_drawing_and_grouping(folder: Path) -> None:
    images = [folder / "pictures" / f"{number % 3}.png" for number in range(9)]
    prompts = from_words(images, ["What?"])
    some = drawn(prompts, 4, 5)
    assert some == drawn(prompts, 4, 5) != drawn(prompts, 4, 6)
    assert drawn(prompts, None, 5)[:4] == some
    assert len({prompt.id for prompt in drawn(prompts, None, 5)}) == 9
    groups = grouped(prompts, 2)
    assert sorted(prompt.id for group in groups for prompt in group) == sorted(prompt.id for prompt in prompts)
    assert max(map(len, groups)) == 2
    assert sum(len({prompt.sizes for prompt in group}) > 1 for group in groups) <= 1, "like to like"
    assert grouped(drawn(prompts, None, 5), 2) == groups


def test_a_prompt_that_the_processor_refuses_is_named(qwen: Asker, folder: Path) -> None:
    Image.new("RGB", (3000, 10)).save(folder / "wide.png")
    wide = from_words([folder / "pictures" / "1.png", folder / "wide.png"], ["color of star ?"])
    with pytest.raises(InputError, match=r"refuses the prompts 1, 2: absolute aspect ratio"):
        asked(qwen, wide, 1)
