"""The same invariants where the language model slides its attention window, where a tower has a pooling head or its features
are taken before its last block, and in half precision."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, generate
from compared import depends_on_text
from plans import FULL, PLANS, plan
from probes.synthetic import DropBlocks
from transformers import LlavaConfig

import foveate
from foveate.errors import UnsupportedModelError, UnsupportedSiteError

WINDOW = 20  # shorter than every prompt with an image


@cache
def sliding(impl: str) -> Any:
    """A tiny LLaVA on Mistral, all of whose layers slide."""
    config = tiny.config("llava")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = {name: getattr(config.text_config, name) for name in (*names, "num_key_value_heads", "pad_token_id")}
    text |= dict(model_type="mistral", sliding_window=WINDOW, head_dim=16, bos_token_id=None, eos_token_id=None)
    return tiny.build(
        LlavaConfig(vision_config=config.vision_config, text_config=text, image_token_index=config.image_token_index),
        impl,
    )


@plan
def test_sliding_windows(impl: str, plan: str) -> None:
    model, rows = sliding(impl), ROWS["llava"]
    batch = tiny.inputs("llava", rows)
    said = ""
    try:
        foveate.compress(model, PLANS[plan]).remove()
    except UnsupportedSiteError as error:
        said = str(error)
    if said:
        assert re.search("which frames are of one video is known nowhere", said)
        return
    if any(site.at in ("decode", "cache") for site in PLANS[plan].sites(foveate.Host("llava", 4, 6, True))):
        with foveate.compress(model, PLANS[plan]), pytest.raises(UnsupportedSiteError, match="full-attention"):
            generate(model, batch)
        return
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together = model(**batch).logits
        for i in range(len(rows)):
            alone = tiny.inputs("llava", rows, only=i)
            text = ~tiny.visual_mask("llava", alone)[0]
            close(together[i][batch["attention_mask"][i].bool()][text], model(**alone).logits[0][text])
        if depends_on_text(PLANS[plan]):
            return
        steps: Any = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        length = batch["input_ids"].shape[1]
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, 4), value=1)
        full = model(**dict(batch, input_ids=steps.sequences, attention_mask=mask)).logits
        for step in range(4):
            close(full[:, length - 1 + step], steps.logits[step])
        assert all(entry.keys.shape[-2] <= WINDOW - 1 for entry in steps.past_key_values.layers)
        assert steps.past_key_values.get_seq_length() == length + 3


@cache
def siglip(layer: int, head: bool) -> Any:
    """A tiny LLaVA on SigLIP whose features are those of another layer, or whose tower pools them, for nobody."""
    config = tiny.config("llava_siglip")
    config.vision_feature_layer, config.vision_config.vision_use_head = layer, head
    return tiny.build(config)


@pytest.mark.parametrize(("layer", "head"), [(-1, True), (-2, False), (-2, True)])
@pytest.mark.parametrize("plan", ["blocks", "tome", "visionzip", "downsample", "ipcv+visionzip+fastv"])
def test_siglip_with_a_head_and_other_feature_layers(layer: int, head: bool, plan: str) -> None:
    model, rows = siglip(layer, head), ROWS["llava_siglip"]
    batch = tiny.inputs("llava_siglip", rows)
    stock = tiny.text_logits(model, batch)
    if plan in FULL:
        with foveate.compress(model, FULL[plan]):
            assert torch.equal(tiny.text_logits(model, batch), stock)
    unread = DropBlocks(block=tiny.BLOCKS - 1)
    if layer == -2:
        with pytest.raises(UnsupportedSiteError, match=f"0 to {tiny.BLOCKS - 2} .features are taken before"):
            foveate.compress(model, unread)
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together = model(**batch).logits
        for i in range(len(rows)):
            text = ~tiny.visual_mask("llava_siglip", alone := tiny.inputs("llava_siglip", rows, only=i))[0]
            close(together[i][batch["attention_mask"][i].bool()][text], model(**alone).logits[0][text])
    assert torch.equal(tiny.text_logits(model, batch), stock)


def test_siglip_without_its_first_patch_is_refused() -> None:
    config = tiny.config("llava_siglip")
    config.vision_feature_select_strategy = "default"
    with pytest.raises(UnsupportedModelError, match='set "full" in the model'):
        foveate.compress(tiny.build(config), "stride")
