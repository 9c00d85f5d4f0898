"""The procedural scenes: the same everywhere, splits apart, answers that follow from what was drawn."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from foveate_reference.drawing import KINDS, Picture
from foveate_reference.scenes import MAX_QUESTIONS, SPLITS, Question, ask, make_scene, split_of, split_seed
from foveate_reference.vocabulary import CELLS, CHOICES, CORE, NUMBERS, QUADRANTS, SHAPES, SIZE, TEXTURES, WORDS

SEEDS = range(60)


def test_a_seed_decides_every_pixel():
    scenes = [make_scene(seed) for seed in (0, 1, 2)]
    again = [make_scene(seed) for seed in (0, 1, 2)]
    for one, other in zip(scenes, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert one.objects == other.objects
    assert not np.array_equal(scenes[0].image, scenes[1].image)


def test_what_a_seed_draws_is_the_same_on_every_machine():
    scenes = [make_scene(seed) for seed in range(20)]
    drawn = repr([(scene.objects, scene.texture, ask(scene, seed)) for seed, scene in enumerate(scenes)])
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "3d45fd36d2a3c54c"
    coarse = np.stack([s.image.reshape(10, 16, 10, 16, 3).astype(np.int64).mean((1, 3)) for s in scenes])
    # Not a hash of the pixels: edges and scaled glyphs may differ a little between versions of Pillow.
    assert abs(coarse.mean() - 101.370) < 0.01


def test_scene_is_well_formed():
    for seed in SEEDS:
        scene = make_scene(seed, simple=seed % 2 == 0)
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8
        assert scene.texture in TEXTURES
        assert scene.coverage.shape == (len(scene.objects), 10, 10)
        assert (scene.coverage.sum(0) <= 16 * 16).all()  # objects do not overlap
        assert (scene.coverage.sum((1, 2)) > 40).all()
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            assert thing.kind in KINDS
            assert (thing.text is None) == (thing.kind in SHAPES)


def test_splits_do_not_overlap():
    ranges = sorted((first, first + number) for first, number in SPLITS.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert len({split_seed(split, 5) for split in SPLITS}) == len(SPLITS)
    with pytest.raises(ValueError, match="outside the test split"):
        split_seed("test", SPLITS["test"][1])
    with pytest.raises(ValueError, match="no split 'dev'"):
        split_seed("dev", 0)
    assert [split_of(split_seed(split, 5)) for split in SPLITS] == list(SPLITS)
    with pytest.raises(ValueError, match="in no split"):
        split_of(-1)


def test_every_answer_follows_from_the_objects():
    seen = set()
    for seed in SEEDS:
        scene = make_scene(seed)
        questions = ask(scene, seed)
        assert len(questions) <= MAX_QUESTIONS
        assert len({question.text for question in questions}) == len(questions)
        for question in questions:
            assert question.answer == derive(scene, question), question
            assert question.answer in CHOICES[question.task]
            assert set(question.about) <= set(question.evidence)
            assert question.text.split()[-1] == "?"
            assert len(question.text.split()) == 4
            assert set(question.text.split()) <= set(WORDS)
            seen.add(question.task)
    assert seen == set(CORE)


def derive(scene: Picture, question: Question) -> str:
    """The answer, found again from the text of the question alone."""
    _, first, second, _ = question.text.split()
    things = scene.objects
    shapes = [thing for thing in things if thing.kind in SHAPES]

    def only(found):
        (thing,) = found
        return thing

    def named(kind):
        return only([thing for thing in shapes if thing.kind == kind])

    match question.task:
        case "texture":
            return scene.texture
        case "color":
            return named(second).color
        case "shape":
            return only([thing for thing in shapes if thing.color == second]).kind
        case "read" | "digit" | "word":
            kind = {"read": "box", "digit": "digit", "word": "plate"}[question.task]
            return only([thing for thing in things if thing.kind == kind and thing.color == second]).text
        case "count":
            return NUMBERS[sum(thing.color == second for thing in things)]
        case "exist":
            return "yes" if any((thing.color, thing.kind) == (first, second) for thing in shapes) else "no"
        case "absent":
            return "yes" if any(thing.kind == second for thing in shapes) else "no"
        case "where":
            x, y = named(second).center
            return QUADRANTS[2 * (y > SIZE / 2) + (x > SIZE / 2)]
        case "cell":
            x, y = named(second).center
            return CELLS[3 * int(y / (SIZE / 3)) + int(x / (SIZE / 3))]
        case "side":
            return "left" if named(first).center[0] < named(second).center[0] else "right"
        case "height":
            return "above" if named(first).center[1] < named(second).center[1] else "below"
        case "odd":
            return only([t for t in shapes if sum(other.kind == t.kind for other in shapes) == 1]).color
    raise AssertionError(f"no such task: {question.task}")


def test_no_answer_is_too_common():
    answers = {task: [] for task in CORE}
    for seed in range(400):
        for question in ask(make_scene(seed), seed):
            answers[question.task].append(question.answer)
    for task, given in answers.items():
        kinds, counts = np.unique(given, return_counts=True)
        assert len(kinds) == len(CHOICES[task]), task
        assert counts.max() / len(given) < 1.6 / min(len(kinds), 3), (task, kinds, counts)
