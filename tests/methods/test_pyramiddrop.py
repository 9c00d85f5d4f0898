"""PyramidDrop, by a plain loop over the layers of a stock model."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from by_loops import best, kept
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import foveate
from foveate import PyramidDrop

PAIR = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
#: one image between words, of which the last ones ask about it
ROW: list[list[Any]] = [[4, "image", 6]]


@pytest.mark.parametrize("layer", [0, 1, 3, 5])
@PAIR
def test_it_ranks_by_the_layer_to_come(family: str, layer: int) -> None:
    batch = tiny.inputs(family, ROW)
    visual = tiny.visual_mask(family, batch)[0]
    with torch.no_grad():
        row = tiny.model(family, "eager")(**batch, output_attentions=True).attentions[layer][0, :, -1, visual].mean(0)
    chosen = best(row.tolist(), (len(row) + 1) // 2)
    assert kept(tiny.model(family), batch, PyramidDrop(layers=(layer,))) == [tuple(sorted(chosen))]


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_it_is_the_loop_of_its_paper(positions: Any) -> None:
    """All layers of the stock model, one by one, on fewer and fewer tokens."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROW)
    text, images = model.model.language_model, tiny.visual_mask("llava", batch)[0]
    raster = torch.where(images, images.cumsum(0) - 1, -1)  # where in the image; -1: a word
    chosen = []
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states[0]
        ids = torch.arange(hidden.shape[1])[None]
        left = int(images.sum())
        for number, layer in enumerate(text.layers):
            if number in (2, 3, 4):
                attention, normed = layer.self_attn, layer.input_layernorm(hidden)
                heads = (1, len(raster), -1, attention.head_dim)
                q, k = (f(normed).view(heads).transpose(1, 2) for f in (attention.q_proj, attention.k_proj))
                q, k = apply_rotary_pos_emb(q, k, *text.rotary_emb(hidden, ids))
                k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
                row = (q[0, :, -1:] @ k[0].transpose(1, 2) * attention.scaling).softmax(-1)[:, 0].mean(0)
                left = (left + 1) // 2
                places = (raster >= 0).nonzero().flatten()
                best_of = places[best(row[places].tolist(), left)]
                stays = raster < 0
                stays[best_of] = True
                hidden, raster, ids = hidden[:, stays], raster[stays], ids[:, stays]
                if positions == "renumber":
                    ids = torch.arange(len(raster))[None]
                chosen.append(tuple(raster[raster >= 0].tolist()))
            hidden = layer(hidden, position_embeddings=text.rotary_emb(hidden, ids), attention_mask=None)
        logits = model.lm_head(text.norm(hidden))[0, -1]
        method = PyramidDrop(positions=positions)
        assert kept(model, batch, method) == chosen
        with foveate.compress(model, method):
            torch.testing.assert_close(model(**batch).logits[0, -1], logits, rtol=1e-4, atol=1e-4)


def test_a_small_share_moves_the_first_cut_to_the_first_layer() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROW)
    with torch.no_grad(), foveate.compress(model, PyramidDrop(keep=0.1)) as handle:
        model(**batch)
        visits = handle.report().visits
    assert visits[0].site == "decoder 0"
    assert visits[-1].after[0] == round(0.1 * visits[0].before[0])
