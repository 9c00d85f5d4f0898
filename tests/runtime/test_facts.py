"""A family that says something wrong of a model: every fact is contradicted in a sentence, before or in the first call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS
from plans import PLANS
from probes.synthetic import DropBlocks
from torch import nn

import foveate
from foveate.errors import UnsupportedModelError
from foveate.method import Method, Site
from foveate.models import list_families
from foveate.runtime.attach import Runtime
from foveate.tokens import Reduction, Tokens

DROP = DropBlocks() + foveate.Stride(keep=0.5)


def run(name: str, method: Method = DROP, model: Any = None, **facts: Any) -> None:
    """The first call of a model whose family says ``facts`` of its tower (or, with ``decoder_`` before it, of its decoder)."""
    family = list_families()[name]
    decoder = {key.removeprefix("decoder_"): value for key, value in facts.items() if key.startswith("decoder_")}
    tower = {key: value for key, value in facts.items() if not key.startswith("decoder_")}
    wrong = replace(family, tower=replace(family.tower, **tower), decoder=replace(family.decoder, **decoder))
    model = model or tiny.model(name)
    runtime = Runtime(model, wrong, method)
    try:
        with torch.no_grad():
            model(**tiny.inputs(name, ROWS[name]))
    finally:
        runtime.remove()


MASK = {"attention_mask": "mask"}


def last_block(off: int) -> Any:
    return lambda config: list_families()["llava"].tower.last_block(config) + off


@pytest.mark.parametrize(
    ("family", "fact", "value"),
    [
        ("llava", "module", "vision"),
        ("llava", "blocks", "encoder.blocks"),
        ("llava", "attention", "attn"),
        ("llava", "query", "qkv"),
        ("qwen2_5_vl", "output", "merger"),
        ("mistral3", "neck", ("multi_modal_projector.norm2",)),
        ("llava", "decoder_norm", "final_norm"),
        ("qwen3_5", "decoder_attention", "attention"),
    ],
)
def test_a_name_that_is_not_there(family: str, fact: str, value: Any) -> None:
    owner, field = ("Decoder", fact.removeprefix("decoder_")) if "decoder" in fact else ("Tower", fact)
    path = value if isinstance(value, str) else value[0]
    with pytest.raises(
        UnsupportedModelError, match=rf"family '{family}' says {owner}.{field}='{path}', but .* no such module"
    ):
        run(family, **{fact: value})


@pytest.mark.parametrize(
    ("family", "facts", "sentence"),
    [
        ("llava", dict(unit=lambda config: 4), r"Tower.joins='' of a padded tower, but a unit is 4 patches"),
        ("qwen2_5_vl", dict(unit=lambda config: 1), r"Tower.unit.*block 0 is given 144"),
        ("llava", dict(leading=0), r"Tower.leading.*block 0 is given"),
        ("llava", dict(layout="packed"), r"Tower.layout='packed', but block 0 is given rows \(3, 37, 32\)"),
        ("llava", dict(last_block=last_block(1)), r"Tower.last_block is 4, but features are made of what block 3 puts out"),
        ("llava", dict(last_block=last_block(-1)), r"Tower.last_block is 2, but features are made of what block 3 puts out"),
        ("llava", dict(last_block=last_block(9)), r"Tower.last_block is 12, but the tower has 5 blocks"),
        ("internvl", dict(last_block=lambda config: 2), r"Tower.last_block is 2, but stock code does not ask"),
        ("internvl", dict(joins=""), r"Tower.joins='' of a padded tower, but a unit is 4 patches"),
        ("gemma3", dict(joins="before"), r"Tower.joins='before', by which 80 rows .* given 320"),
        ("llava", dict(output="vision_tower"), r"rows of tokens reach 'vision_tower' .*given \(3, 3, 24, 24\)"),
        ("qwen2_5_vl", dict(output="visual.blocks.3.attn"), r"features .*, but it makes 72"),
        ("llava", dict(kept_rows=lambda config: 1), r"makes 111 features .* it makes 108"),
        ("llava", dict(decoder_layer_args={**MASK, "position_embeddings": -1}), r"'position_embeddings'\]=-1, but"),
        ("qwen2_5_vl", dict(decoder_layer_args={**MASK, "position_embeddings": -1}), r"'position_embeddings'\]=-1, but"),
    ],
)  # fmt: skip
def test_a_wrong_fact(family: str, facts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^the family '{family}' says .*{sentence}"):
        run(family, **facts)


def test_a_wrong_last_block_where_the_projector_is_given_cls_tokens() -> None:
    config = tiny.config("llava")
    config.vision_feature_select_strategy = "full"
    model, family = tiny.build(config), list_families()["llava"]
    runtime = Runtime(model, replace(family, tower=replace(family.tower, last_block=last_block(1))), DROP)
    with torch.no_grad(), pytest.raises(UnsupportedModelError, match="is 4, but features are made of what block 3"):
        model.get_image_features(tiny.inputs("llava", ROWS["llava"])["pixel_values"])
    runtime.remove()


class Squares(nn.Module):
    """A projector that is given patches put together as ``(images, height, width, C)``."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.inner = stock

    def forward(self, x: Any) -> Any:
        return self.inner(x[:, None])[:, 0]


def test_patches_put_together_as_squares() -> None:
    model = tiny.model("internvl", fresh=True)
    model.model.multi_modal_projector = Squares(model.model.multi_modal_projector)
    with pytest.raises(
        UnsupportedModelError, match=r"'multi_modal_projector.inner' .* given \(7, 1, 16, 128\), and not"
    ):
        run("internvl", model=model, output="multi_modal_projector.inner")


def test_hidden_states_from_before_the_last_norm() -> None:
    """They would be those of what is left, where stock code wants whole tiles."""
    config = tiny.config("idefics3")
    model = tiny.build(config)
    vision, connector = model.model.vision_model, model.model.connector
    stock, forward = connector.forward, vision.forward

    def tower(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{**kwargs, "output_hidden_states": True})

    seen: dict[str, Any] = {}
    vision.forward = tower
    vision.register_forward_hook(lambda module, args, output: seen.update(states=output.hidden_states))
    connector.forward = lambda x: stock(seen["states"][-1].contiguous())
    for method in (foveate.Downsample(keep=1.0), DropBlocks(keep=1.0)):
        run("idefics3", method, model)
    for method in (foveate.Downsample(), DropBlocks()):
        with pytest.raises(
            UnsupportedModelError, match=r"the last one, after the last norm\), but they are made of other"
        ):
            run("idefics3", method, model)


class Everything(Method):
    def sites(self, host: Any) -> Any:
        return [Site("tower", 1), Site("tower_output"), Site("lm_entry"), Site("decoder", 1)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return Reduction(torch.arange(len(tokens)), tokens.counts)


def test_what_is_right_passes(family: str) -> None:
    run(family, Everything())
    run(family, PLANS["blocks"] + PLANS["stride"])
