"""What a prompt has of an image whose features are not all patches."""

from __future__ import annotations

import pytest
import tiny
import torch

from foveate import ADSC, IPCV, LUVC, Random, ToMe
from foveate.errors import UnsupportedSiteError
from foveate.models import list_families
from foveate.runtime.attach import host_with
from foveate.serving.plan import Item, make_plan

CLS = Item(grid=((1, 2, 3),), tower=((1, 2, 3),), gaps=((0, 1),))
LINES = Item(grid=((1, 2, 2), (1, 2, 3)), tower=((1, 2, 2),) * 3, gaps=((7, 1), (10, 1)))


def test_features_that_are_no_patches_have_no_cell() -> None:
    assert CLS.patches().tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert LINES.patches().tolist() == [0, 1, 2, 3, 4, 5, 6, -1, 7, 8, 9, -1]
    assert (CLS.cells, CLS.features, LINES.cells, LINES.features) == (6, 7, 10, 12)


def test_features_that_are_no_patches_stay() -> None:
    assert CLS.kept((2,)) == [0, 1, 2]
    assert LINES.kept((1, 4)) == [0, 4, 5, 6, 7, 8, 11]
    assert LINES.kept((0, 0)) == [7, 11]


def test_text_that_ends_lines_counts_as_features() -> None:
    """Of Pixtral's images, whether their pixels are there or not; of others it is text."""
    pytest.importorskip("vllm")
    from foveate.serving.vllm.pixtral import shape
    from foveate.serving.vllm.prompt import INSIDE, inside_of

    config, ids = tiny.config("mistral3"), torch.tensor([-1, -1, -1, 7, -1, -1, -1, 8])
    lines = Item(grid=((1, 2, 3),), tower=((1, 2, 3),), gaps=((3, 1), (6, 1)))
    cell = 2 * config.vision_config.patch_size
    for data in ({INSIDE: ids}, {INSIDE: ids, "pixel_values": torch.zeros(3, 2 * cell, 3 * cell)}):
        assert shape(config, "image", data, 6) == lines
    assert inside_of(lines, ids).all()
    assert torch.equal(inside_of(Item(lines.grid, lines.tower), ids), ids < 0)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_methods_that_leave_holes_among_tiles_are_refused(name: str) -> None:
    config, family = tiny.config(name), list_families()[name]
    host = host_with(family, config, config.get_text_config().num_hidden_layers)
    with pytest.raises(UnsupportedSiteError, match="tome"):
        make_plan(ToMe(), host, family, config)
    for method in (IPCV(), Random(keep=0.5)):
        assert make_plan(method, host, family, config).method is method


def test_methods_that_act_between_layers_with_a_state_are_refused() -> None:
    config, family = tiny.config("qwen3_5"), list_families()["qwen3_5"]
    host = host_with(family, config, config.get_text_config().num_hidden_layers)
    for inside in (ADSC(), LUVC()):
        with pytest.raises(UnsupportedSiteError, match="its layers carry a state from token to token"):
            make_plan(inside, host, family, config)
    for before in (IPCV(), ToMe(), Random(keep=0.5)):
        assert make_plan(before, host, family, config).method is before


def test_one_layer_as_three() -> None:
    pytest.importorskip("vllm")
    from foveate.serving.vllm.graft import unfused

    calls = []

    def layer(rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        calls.append(len(rows))
        return torch.cat([rows, 2 * rows, 3 * rows], dim=-1), None

    query, key, value = unfused(layer)
    rows = torch.randn(4, 2)
    assert torch.equal(query(rows), rows)
    assert torch.equal(key(rows), 2 * rows)
    assert torch.equal(value(rows), 3 * rows)
    assert calls == [4]
    few = rows[:1]
    assert [len(each) for each in (query(few), key(rows), value(rows))] == [1, 4, 4]
    assert calls == [4, 1, 4]
