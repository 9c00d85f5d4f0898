"""What pages have from a run is what a run tells today; if it is not: python tools/pages/lists.py."""

from __future__ import annotations

import json

import asked
import facts
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from foveate.models import list_families


def leaves_to_the_matrix(alike: bool) -> bool:
    """What is asked of families that are built like others takes several times as long."""
    return alike


@pytest.mark.parametrize("alike", [False, True])
def test_which_method_runs_on_which_family(alike: bool) -> None:
    families = list_families()
    names = tuple(name for name in families if (name not in tiny.STRUCTURES) == alike)
    now, then = asked.pairs(names), facts.asked(facts.PAIRS)  # of those that this transformers knows
    assert set(then) == set(families)
    assert json.loads(json.dumps(now)) == {family: then[family] for family in now}


def test_which_methods_are_served() -> None:
    assert asked.served() == facts.asked(facts.SERVED)


def test_what_is_left_of_the_image_of_the_first_page() -> None:
    """Scores that are nearly equal may come out the other way round on another processor."""
    threads = torch.get_num_threads()
    now, then = asked.survivors(), facts.asked(facts.SURVIVORS)
    assert torch.get_num_threads() == threads
    assert (now["question"], now["right"]) == (then["question"], then["right"])
    for one, other in zip(now["panels"], then["panels"], strict=True):
        assert [one[key] for key in ("method", "answer", "grid")] == [
            other[key] for key in ("method", "answer", "grid")
        ]
        assert len(set(one["kept"]) ^ set(other["kept"])) <= 4
    with Image.open(facts.SCENE) as committed:
        assert (np.asarray(committed) == np.asarray(asked.scene())).all()
