"""Decoder layers that carry a state: a dropped token is one that never was, and padding never enters the state."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, generate
from plans import PLANS
from torch import Tensor

import foveate
from foveate import DyCoke, FastV, Stride, V2Drop
from foveate.errors import UnsupportedSiteError

recurrent = pytest.mark.parametrize("family", tiny.RECURRENT)
hybrid = pytest.mark.parametrize("family", tiny.packed.HYBRID)  # whose positions follow grids


def _by_hand(model: Any, batch: dict[str, Tensor], layer: int, keep: Tensor) -> Tensor:
    """The stock layers one after another on one row; from ``layer`` on, on the tokens ``keep`` alone."""
    lm = tiny.lm(model)
    ids = tiny.positions(model, {name: value for name, value in batch.items() if name != "attention_mask"})
    hidden = lm.embed_tokens(batch["input_ids"]).clone()
    features = model.get_image_features(batch["pixel_values"], batch["image_grid_thw"]).pooler_output
    hidden[tiny.visual_mask(batch["family"], batch)] = torch.cat(list(features))
    rotary = lm.rotary_emb(hidden, ids)
    for i, block in enumerate(lm.layers):
        if i == layer:
            hidden, rotary = hidden[:, keep], tuple(part[:, keep] for part in rotary)
        future = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).triu(1)
        mask = torch.zeros(1, 1, *future.shape).masked_fill(future, torch.finfo(torch.float32).min)
        mask_of = {"attention_mask": mask if hasattr(block, "self_attn") else None}
        hidden = block(hidden, position_embeddings=rotary, **mask_of)
    return model.lm_head(lm.norm(hidden))[0]


@hybrid
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [0, 1, 3, 5])
def test_a_dropped_token_never_was(family: str, impl: str, layer: int, side: str) -> None:
    model, rows = tiny.model(family, impl), ROWS[family][:2]
    batch = tiny.inputs(family, rows, padding_side=side)
    with torch.no_grad(), foveate.compress(model, foveate.Random(layer=layer, ratio=0.4)) as handle:
        ours = model(**batch).logits
        visit = handle.report().visits[0]
    kept = [torch.tensor([i in k for i in range(h * w)]) for k, (h, w) in zip(visit.kept, visit.shapes, strict=True)]
    for row, spans in enumerate([kept[:1], kept[1:]]):
        alone: dict[str, Any] = tiny.inputs(family, rows, only=row)
        visual = tiny.visual_mask(family, alone)[0]
        stays = ~visual
        stays[visual] = torch.cat(spans)
        with torch.no_grad():
            reference = _by_hand(model, alone | {"family": family}, layer, stays.nonzero().flatten())
        close(ours[row][batch["attention_mask"][row].bool()][~visual], reference[~visual[stays]])


@recurrent
def test_without_a_cache(family: str, impl: str) -> None:
    """Rows of different lengths: layers with and without attention get masks of their own kind."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, Stride(ratio=0.5, layers=(0, 3))):
        cached, plain = (model(**batch, use_cache=use).logits for use in (True, False))
    close(cached[batch["attention_mask"].bool()], plain[batch["attention_mask"].bool()], 1e-6)


@hybrid
@pytest.mark.parametrize("method", [Stride(keep=0.5), Stride(ratio=0.5, layers=(1, 4)), foveate.VTW(layer=2)], ids=repr)
def test_rows_of_different_lengths_go_on_from_a_cache(family: str, method: foveate.Method) -> None:
    """A second turn whose images differ from row to row: what is left of each follows what its own state knows."""
    model = tiny.model(family)
    first: list[list[tiny.Item]] = [[9], [9]]
    second: list[list[tiny.Item]] = [[2, (8, 8), 3], [4, (4, 8), 9]]
    assert 16 + 2 + 3 == 8 + 4 + 9

    def turns(rows: list[int]) -> Tensor:
        seeded = ((1, first), (2, second))
        batches = [[tiny.inputs(family, turn, seed=seed, only=row) for row in rows] for seed, turn in seeded]
        one, two = ({k: torch.cat([batch[k] for batch in turn]) for k in turn[0]} for turn in batches)
        length = one["input_ids"].shape[1]
        both = {k: torch.cat([one[k], two[k]], dim=1) for k in ("input_ids", "mm_token_type_ids", "attention_mask")}
        ids = tiny.positions(model, both | {"image_grid_thw": two["image_grid_thw"]})
        cache = model(**one).past_key_values
        two |= {"position_ids": ids[..., length:], "attention_mask": both["attention_mask"]}
        last = model(**two, past_key_values=cache).logits[:, -1]
        after = {"input_ids": torch.full((len(rows), 1), 30), "position_ids": ids[..., -1:] + 1}
        mask = torch.nn.functional.pad(both["attention_mask"], (0, 1), value=1)
        return torch.stack([last, model(**after, attention_mask=mask, past_key_values=cache).logits[:, -1]], dim=1)

    with torch.no_grad(), foveate.compress(model, method):
        together = turns([0, 1])
        close(together, torch.cat([turns([0]), turns([1])]))


@cache
def usual(family: str) -> Any:
    """Layers as in models that are published: three with a state, then one with attention."""
    return tiny.build(tiny.config(family, layer_types=None, num_hidden_layers=8))


LATER = Stride(layers=(1,)) + DyCoke(ratio=1.0, decode_ratio=0.4, layer=4)


@recurrent
@pytest.mark.parametrize(
    "method", [FastV(layer=4), V2Drop(), Stride(layers=(0, 2), positions="renumber"), LATER], ids=str
)
def test_layers_as_published(family: str, method: foveate.Method) -> None:
    model, rows = usual(family), ROWS[family]
    attends = [hasattr(layer, "self_attn") for layer in tiny.lm(model).layers]
    assert attends == [False, False, False, True] * 2
    with torch.no_grad(), foveate.compress(model, method):
        options: Any = dict(output_logits=True, return_dict_in_generate=True)
        together: Any = generate(model, tiny.inputs(family, rows), **options)
        for i in range(len(rows)):
            alone: Any = generate(model, tiny.inputs(family, rows, only=i), **options)
            for step in range(4):
                close(together.logits[step][i], alone.logits[step][0])


@recurrent
def test_a_decode_site_chooses_at_the_first_layer_that_has_keys(family: str) -> None:
    """Layers 4 to 6 of the usual eight carry a state; layer 7 is the next that has something to hide."""
    model, batch = usual(family), tiny.inputs(family, ROWS[family][:2])
    with torch.no_grad():
        stock = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        with foveate.compress(model, DyCoke(ratio=1.0, decode_ratio=0.2, layer=4)) as handle:
            ours: Any = generate(model, batch, output_logits=True, return_dict_in_generate=True)
            visit = handle.report().visits[-1]
    assert visit.site == "decode 4"
    assert sum(visit.after) < sum(visit.before)
    assert not torch.equal(ours.logits[1], stock.logits[1])  # type: ignore[attr-defined]


@recurrent
@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (FastV(), "fastv wants last_row at decoder 2, but the layer before it carries a state.* use layer 4$"),
        (DyCoke(ratio=1.0, layer=3), "wants last_row at decode 3.* use layer 4$"),
        (PLANS["signals"], "wants received .* use layer 4$"),
    ],
    ids=["fastv", "dycoke", "signals"],
)
def test_what_is_not_there_is_refused(family: str, method: foveate.Method, sentence: str) -> None:
    with pytest.raises(UnsupportedSiteError, match=sentence):
        foveate.compress(usual(family), method)


@recurrent
def test_nothing_to_hide_is_refused(family: str) -> None:
    """Only layer 3 of six as they are usually has attention."""
    model = tiny.build(tiny.config(family, layer_types=None))
    with pytest.raises(UnsupportedSiteError, match="decode 4, but no layer from there on has attention: use layer 3"):
        foveate.compress(model, DyCoke(ratio=1.0, layer=4))
