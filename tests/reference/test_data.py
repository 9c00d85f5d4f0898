"""Benchmarks: balanced, disjoint between splits and seeds, and readable by the tools of the trade."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from foveate_reference.assets import assets
from foveate_reference.data import SEEDS, samples, to_dataset
from foveate_reference.scenes import SPLITS
from foveate_reference.vocabulary import CHOICES, CORE, STANDS_FOR, TASKS, WORDS


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_every_task_has_its_questions():
    found = samples(per_task=3)
    assert [sample.task for sample in found] == [task for task in TASKS for _ in range(3)]
    assert len({sample.id for sample in found}) == len(found)
    for sample in found:
        assert sample.answer in sample.choices
        for image, cells in zip(sample.images, sample.evidence, strict=True):
            assert cells.shape == (image.shape[0] // 16, image.shape[1] // 16)
            assert 0 <= cells.min() <= cells.max() <= 1
    assert set(STANDS_FOR) == set(TASKS)
    assert set(CORE) < set(TASKS)
    assert len(set(WORDS)) == len(WORDS)


def test_no_constant_answer_is_often_right():
    for task in TASKS:
        given = Counter(sample.answer for sample in samples(tasks=[task], per_task=60))
        share = given.most_common(1)[0][1] / 60
        assert share <= max(1.35 / len(CHOICES[task]), 0.15), (task, given)


def test_splits_and_seeds_share_no_image():
    found = {
        (split, seed): {digest(i) for s in samples(split, per_task=2, seed=seed) for i in s.images}
        for split, seed in [*((split, 0) for split in SPLITS), ("test", 1)]
    }
    assert sum(map(len, found.values())) == len(set.union(*found.values()))


def test_the_same_seed_makes_the_same_benchmark():
    one, other = samples(per_task=2, seed=3), samples(per_task=2, seed=3)
    for a, b in zip(one, other, strict=True):
        assert (a.id, a.question, a.answer) == (b.id, b.question, b.answer)
        assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_splits_share_no_photograph_font_or_digit():
    for what in ("photos", "digits", "fonts"):
        seen = {}
        for split in SPLITS:
            for item in getattr(assets(split), what):
                pixels = np.concatenate(list(item.values()), 1) if isinstance(item, dict) else item
                seen.setdefault(digest(pixels), set()).add(split)
        assert all(len(splits) == 1 for splits in seen.values()), what
    assert all(len(np.unique(assets(split).digit_labels)) == 10 for split in SPLITS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks": ["colour"]}, "no task 'colour'; there are color, "),
        ({"seed": SEEDS}, f"seed {SEEDS} is out of range: choose 0 to {SEEDS - 1}"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"per_task": 0}, "0 questions per task"),
        ({"split": "dev"}, "no split 'dev'; there are train, validation, test"),
    ],
)
def test_mistakes_are_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        samples(**{"per_task": 1, **options})


def test_a_chat_shows_all_images_then_asks():
    (sample,) = samples(tasks=["move"], per_task=1)
    user, assistant = sample.messages
    assert [part["type"] for part in user["content"]] == ["image"] * 4 + ["text"]
    assert np.array_equal(np.asarray(user["content"][2]["image"]), sample.images[2])
    assert user["content"][-1]["text"] == sample.question
    assert assistant == {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]}


def test_a_dataset_keeps_every_pixel_and_word(tmp_path):
    datasets = pytest.importorskip("datasets")
    found = samples(tasks=["color", "pair", "document"], per_task=2)
    to_dataset(found).save_to_disk(tmp_path / "benchmark")
    rows = datasets.load_from_disk(tmp_path / "benchmark")
    for sample, row in zip(found, rows, strict=True):
        assert (row["id"], row["task"], row["answer"]) == (sample.id, sample.task, sample.answer)
        assert row["choices"] == list(sample.choices)
        assert all(np.array_equal(np.asarray(i), j) for i, j in zip(row["images"], sample.images, strict=True))
        user, assistant = row["messages"]
        assert [part["type"] for part in user["content"]] == ["image"] * len(sample.images) + ["text"]
        assert user["content"][-1]["text"] == sample.question
        assert assistant["content"][0]["text"] == sample.answer
