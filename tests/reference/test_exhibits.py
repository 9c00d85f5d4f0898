"""Charts, tables, documents, pairs and videos: answers follow from what was drawn, evidence covers it."""

from __future__ import annotations

import numpy as np
import pytest

from foveate_reference.exhibits import EXHIBITS, KIND_OF, make_exhibit
from foveate_reference.vocabulary import CHOICES, DIRECTIONS, ORDINALS, TASKS, WORDS

SHAPE = {"document": (1, 320, 320), "pair": (2, 160, 160), "video": (4, 160, 160)}


@pytest.mark.parametrize("kind", EXHIBITS)
def test_an_exhibit_is_well_formed(kind):
    asked = set()
    for seed in range(30):
        exhibit = make_exhibit(kind, seed)
        images = np.stack([picture.image for picture in exhibit.pictures])
        assert images.shape == (*SHAPE.get(kind, (1, 160, 160)), 3)
        assert np.array_equal(images, np.stack([p.image for p in make_exhibit(kind, seed).pictures]))
        assert len(exhibit.questions) <= EXHIBITS[kind]
        assert len({question.text for question in exhibit.questions}) == len(exhibit.questions)
        for question in exhibit.questions:
            words = question.text.split()
            assert len(words) == 4
            assert words[-1] == "?"
            assert set(words) <= set(WORDS)
            assert question.answer in CHOICES[question.task]
            assert KIND_OF.get(question.task, "scene") == kind
            assert set(question.about) <= set(question.evidence) <= set(range(len(exhibit.objects)))
            asked.add(question.task)
    assert asked == {task for task in TASKS if KIND_OF.get(task, "scene") == kind}


def test_evidence_is_where_the_objects_are():
    exhibit = make_exhibit("pair", 3)
    question = exhibit.questions[0]
    under = exhibit.under(question.evidence)
    assert under.shape == (2, 10, 10)
    assert under.max() == 1
    which = ORDINALS.index(question.answer)
    assert not under[1 - which].any()
    box = exhibit.objects[question.about[0]].box
    rows, columns = np.nonzero(exhibit.under(question.about[:1])[which])
    assert box[0] // 16 == columns.min()
    assert (box[2] - 1) // 16 == columns.max()
    assert box[1] // 16 == rows.min()
    assert (box[3] - 1) // 16 == rows.max()


def test_charts_tables_and_documents_say_the_truth():
    for seed in range(20):
        chart = make_exhibit("chart", seed)
        heights = {thing.color: thing.box[3] - thing.box[1] for thing in chart.objects}
        for question in chart.questions:
            extreme = max if question.text.startswith("tallest") else min
            assert question.answer == extreme(heights, key=heights.__getitem__)
        assert min(np.diff(sorted(heights.values()))) >= 6
        table = make_exhibit("table", seed)
        entries = {(thing.color, thing.link): thing for thing in table.objects if thing.color and thing.link}
        for question in table.questions:
            _, color, letter, _ = question.text.split()
            entry = entries[color, letter]
            assert entry.text == question.answer
            head = next(t for t in table.objects if t.text == letter and t.color is None)
            field = next(t for t in table.objects if t.kind == "bar" and t.color == color)
            assert abs(head.center[0] - entry.center[0]) < 3
            assert abs(field.center[1] - entry.center[1]) < 5
        document = make_exhibit("document", seed)
        for question in document.questions:
            key, value = (document.objects[i] for i in question.evidence)
            assert (key.text, value.text) == (question.text.split()[2], question.answer)
            assert key.box[1] == value.box[1]
            assert key.box[2] < value.box[0]


def test_videos_move_and_appear_as_they_say():
    for seed in range(30):
        video = make_exhibit("video", seed)
        for question in video.questions:
            kind = question.text.split()[2]
            seen = [next((t.center for t in p.objects if t.kind == kind), None) for p in video.pictures]
            if question.task == "appear":
                assert ORDINALS[[place is not None for place in seen].index(True)] == question.answer
                continue
            first, last = seen[0], seen[-1]
            assert first is not None
            assert last is not None
            (x, y), (later_x, later_y) = first, last
            way = [(x - later_x, y - later_y)[i // 2] * (1, -1)[i % 2] for i in range(4)]  # left, right, up, down
            assert DIRECTIONS[int(np.argmax(way))] == question.answer
            assert max(way) >= 3 * 14
