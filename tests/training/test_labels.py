"""Data and labels: every row format, and a loss on what the assistant says only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveate_reference as reference
from foveate.errors import TrainingError
from foveate.training import data
from foveate.training.collator import IGNORED, Collator, expanded
from foveate.training.data import Chat, to_chat
from foveate_reference.model import make_processor

ARCHITECTURES = reference.ARCHITECTURES


def picture(height: int = 160, width: int = 160) -> Image.Image:
    return Image.effect_noise((width, height), 60).convert("RGB")


def chat(*turns: tuple[str, str], images: int = 1) -> Chat:
    """Questions and answers; the images come first."""
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(turns):
        places = [{"type": "image"}] * (images if number == 0 else 0)
        messages.append({"role": "user", "content": [*places, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return Chat(messages, [picture() for _ in range(images)])


def collator(architecture: str) -> tuple[Collator, Any]:
    processor = make_processor(architecture)
    visual = [processor.tokenizer.convert_tokens_to_ids(reference.model.IMAGE_PAD)]
    return Collator(processor, visual), processor


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_assistants_words_are_learned(architecture: str, side: str) -> None:
    collate, processor = collator(architecture)
    processor.tokenizer.padding_side = side
    chats = [
        chat(("color of circle ?", "red")),
        chat(("color of square ?", "blue"), ("count of circle ?", "two"), images=2),
        chat(("color of circle ?", "green"), images=0),
    ]
    batch = collate(chats)
    ids, labels = batch["input_ids"], batch["labels"]
    assert labels.shape == ids.shape
    assert batch["attention_mask"][0, -1 if side == "left" else 0] == 1
    expected = [["red"], ["blue", "two"], ["green"]]
    for row, words in enumerate(expected):
        learned = labels[row] != IGNORED
        assert torch.equal(labels[row, learned], ids[row, learned])
        said = processor.tokenizer.convert_ids_to_tokens(labels[row, learned].tolist())
        assert said == [token for word in words for token in (word, reference.model.END)]
    visual = torch.isin(ids, torch.tensor(sorted(collate.visual)))
    assert visual.sum() == 300
    assert (labels[visual] == IGNORED).all()
    assert (labels[batch["attention_mask"] == 0] == IGNORED).all()


def test_places_of_tokens_among_repeated_placeholders() -> None:
    image = frozenset({9})
    assert expanded([1, 9, 2, 9, 9, 3], [1, 9, 9, 9, 2, 9, 9, 9, 9, 3], image) == [0, 1, 4, 5, 5, 9]
    assert expanded([1, 2], [1, 2], image) == [0, 1]
    with pytest.raises(TrainingError, match="other tokens"):
        expanded([1, 9, 2], [1, 9, 9, 3], image)


def test_an_answer_without_words() -> None:
    collate, processor = collator("llava")
    processor.chat_template = "{% for m in messages %}{% if m.role == 'user' %}red {% endif %}{% endfor %}"
    with pytest.raises(TrainingError, match="every answer in it is empty"):
        collate([chat(("red", ""), images=0)])


def test_an_answer_of_images_alone() -> None:
    collate, _ = collator("llava")
    said = f"{{{{ 'red' if part.type == 'text' else '{reference.model.IMAGE_PAD}' }}}}"
    collate.processor.chat_template = (
        f"{{% for m in messages %}}{{% for part in m.content %}}{said} {{% endfor %}}{{% endfor %}}"
    )
    answer = {"role": "assistant", "content": [{"type": "image"}]}
    asked = {"role": "user", "content": [{"type": "text", "text": "red"}]}
    with pytest.raises(TrainingError, match="no assistant's word after its template"):
        collate([Chat([asked, answer], [picture()])])


def test_a_processor_without_a_template() -> None:
    processor = make_processor("llava")
    processor.chat_template = None
    with pytest.raises(TrainingError, match="no chat template"):
        Collator(processor, [1])


# -- rows ---------------------------------------------------------------------------------------------------------------


def test_rows_of_every_format(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    answer = {"role": "assistant", "content": "red"}
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "color ?"}]
    for image in ("a.png", str(tmp_path / "a.png"), picture(), {"bytes": content, "path": None}, {"path": "a.png"}):
        for question in ("<image>color ?", parts):
            row = {"images": [image], "messages": [{"role": "user", "content": question}, answer]}
            found = to_chat(row, tmp_path)
            assert found.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "color ?"}]
            assert found.messages[1]["content"] == [{"type": "text", "text": "red"}]
            assert found.images[0].size == (160, 160)
    text = to_chat({"images": None, "messages": [{"role": "user", "content": "a"}, answer]}, tmp_path)
    assert text.images == []
    two = to_chat(
        {"images": [picture()] * 2, "messages": [{"role": "user", "content": "a <image> b<image>"}, answer]}, tmp_path
    )
    assert [part["type"] for part in two.messages[0]["content"]] == ["text", "image", "text", "image"]


USER, ANSWER = {"role": "user", "content": "<image>color ?"}, {"role": "assistant", "content": "red"}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"images": [], "messages": [USER, ANSWER]}, "0 images for 1 places"),
        ({"images": ["a.png"], "messages": [USER, ANSWER]}, "there is no image 'a.png'"),
        ({"images": 3, "messages": [USER, ANSWER]}, "`images` is a list"),
        ({"images": [], "messages": "hello"}, "a chat has `messages`"),
        ({"images": [3], "messages": [USER, ANSWER]}, "an image cannot be read"),
        ({"images": [], "messages": [{"role": "user", "content": "a"}]}, "nothing to learn"),
        ({"images": [], "messages": None}, "nothing to learn"),
        ({"images": [], "messages": ["hello"]}, '"role"'),
        ({"images": [], "messages": [{"role": "user", "content": [{"type": "video"}]}, ANSWER]}, "type text or image"),
        ({"images": [], "messages": [{"role": "user", "content": 3}, ANSWER]}, "type text or image"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=sentence):
        to_chat(row, tmp_path)


# -- sources ------------------------------------------------------------------------------------------------------------


def rows_of_jsonl(folder: Path, rows: list[Any]) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_jsonl_file_with_images_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    picture().save(tmp_path / "a.png")
    source = rows_of_jsonl(tmp_path, [{"messages": [USER, ANSWER], "images": ["a.png"]}] * 5)
    chats = data.load(source, "train")
    assert len(chats) == 5
    assert chats[4].images[0].size == (160, 160)
    assert len(data.load(source, "train", 2)) == 2


def test_a_data_set_on_disk_is_the_reference_benchmark(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    samples = reference.samples("train", tasks=["color"], per_task=3)
    table = reference.to_dataset(samples)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "several"))
    for name in ("one", "several"):
        chats = data.load(str(tmp_path / name), "train")
        assert [chats[i].messages[1]["content"][0]["text"] for i in range(3)] == [s.answer for s in samples]
    with pytest.raises(TrainingError, match="no split 'test', only train"):
        data.load(str(tmp_path / "several"), "test")


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    cases = {
        "no column 'images', only messages": rows_of_jsonl(tmp_path, [{"messages": [ANSWER]}]),
        "there is no file": str(tmp_path / "none.jsonl"),
    }
    for sentence, source in cases.items():
        with pytest.raises(TrainingError, match=sentence):
            data.load(source, "train")
    text = [{"messages": [{"role": "user", "content": "a"}, ANSWER], "images": []}]
    with pytest.raises(TrainingError, match="without images there is nothing to compress"):
        data.load(rows_of_jsonl(tmp_path, text), "train")
    (tmp_path / "data.jsonl").write_text("not json")
    with pytest.raises(TrainingError, match=r"line 1 of .*data\.jsonl': not JSON: "):
        data.load(str(tmp_path / "data.jsonl"), "train")
    (tmp_path / "data.json").write_text("not json")
    with pytest.raises(TrainingError, match="cannot read the data set"):
        data.load(str(tmp_path / "data.json"), "train")
    rows = [
        {"messages": [USER, ANSWER], "images": []},
        {"messages": [ANSWER], "images": []},
        {"messages": [USER], "images": []},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    with pytest.raises(
        TrainingError, match=r"2 rows of .* are wrong:\n  row 0: 0 images for 1 .*\n  row 2: no message"
    ):
        data.load(str(tmp_path / "data.json"), "train")
    for content in ("", "\n\n"):
        (tmp_path / "data.jsonl").write_text(content)
        with pytest.raises(TrainingError, match="is empty"):
            data.load(str(tmp_path / "data.jsonl"), "train")
    (tmp_path / "picture.png").write_bytes(b"picture")
    with pytest.raises(TrainingError, match=r"file of another kind: give \.json, \.jsonl, \.parquet"):
        data.load(str(tmp_path / "picture.png"), "train")
    with pytest.raises(TrainingError, match="`images` is a list"):
        data.load(rows_of_jsonl(tmp_path, [{"messages": [USER, ANSWER], "images": "a.png"}]), "train")
    with pytest.raises(TrainingError, match="0 chats to train on: give at least 1"):
        data.load("data.jsonl", limit=0)
