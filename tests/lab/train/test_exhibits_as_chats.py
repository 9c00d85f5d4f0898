"""The reference benchmark as chats to train on."""

from __future__ import annotations

import pytest

from foveate.lab.terminal import CommandError
from foveate.lab.train import exhibits


def test_the_reference_benchmark_in_tiles() -> None:
    whole, cut = (exhibits.load("train", 40, 0, tile) for tile in (0, 160))
    assert len(whole) == len(cut) == 40
    sizes = {image.size for i in range(40) for image in cut[i].images}
    assert sizes == {(160, 160)}
    assert sum(len(cut[i].images) for i in range(40)) > sum(len(whole[i].images) for i in range(40))


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(CommandError, match="--samples 0"):
        exhibits.load("train", 0, 0, 0)
    with pytest.raises(CommandError, match="no split 'nowhere'"):
        exhibits.load("nowhere", 20, 0, 0)
