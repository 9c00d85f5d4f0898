"""Tokens that skip a part of a decoder layer: against layers whose part is silenced for them by hand, and in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, counted, generate
from contract import PROPERTIES, Property
from probes.synthetic import Skips
from refusals import At, left_as_it_was, refused
from torch import Tensor, nn

import foveate
from foveate import FastV, Site
from foveate.errors import ConfigError, UnsupportedSiteError

whole = pytest.mark.parametrize("family", tiny.WHOLE)
part = pytest.mark.parametrize("part", ["ffn", "attention"])
kinds = pytest.mark.parametrize("family", tiny.STRUCTURES)


@pytest.mark.parametrize("check", PROPERTIES)
@whole
def test_properties(family: str, check: Property) -> None:
    """Of tokens that skip attention; methods that skip the FFN have them in methods/test_contract.py."""
    check(family, Skips(ratio=0.3, part="attention"))


def first(family: str) -> int:
    """The first layer with attention; recurrent ones have none to skip."""
    return next(i for i, layer in enumerate(tiny.lm(tiny.model(family)).layers) if hasattr(layer, "self_attn"))


def skip(family: str, part: str, keep: float = 0.3) -> Any:
    """The probe, in layers that have the part."""
    if part == "attention" and family in tiny.RECURRENT:
        layers = [i for i, x in enumerate(tiny.lm(tiny.model(family)).layers) if hasattr(x, "self_attn")]
        return At(tuple(Site("decoder", i, keep, action="skip", part="attention") for i in layers))
    return Skips(ratio=keep, part=part)


@contextmanager
def silenced(model: Any, part: str, skips: Tensor) -> Iterator[None]:
    """Stock layers whose part adds nothing to the rows ``skips (B, L)``: everything is computed, and then zeroed."""

    def zero(module: nn.Module, args: Any, output: Any) -> Any:
        return output.masked_fill(skips[..., None], 0.0) if output.shape[1] == skips.shape[1] else output

    layers = tiny.lm(model).layers
    handles = [(layer.mlp if part == "ffn" else layer.self_attn.o_proj).register_forward_hook(zero) for layer in layers]
    yield
    for handle in handles:
        handle.remove()


def skipping(family: str, batch: dict[str, Tensor], keep: float) -> Tensor:
    """``(B, L)`` bool: all visual tokens but the last of each image, as the probe says."""
    skips = tiny.visual_mask(family, batch).clone()
    for row in skips:
        places, start = row.nonzero().flatten().tolist(), 0
        while start < len(places):
            end = start
            while end + 1 < len(places) and places[end + 1] == places[end] + 1:
                end += 1
            n = end + 1 - start
            stay = int(keep * n + 0.5)
            row[places[end + 1 - stay : end + 1]] = False
            start = end + 1
    return skips


@whole
@part
def test_skipping_is_adding_nothing(family: str, impl: str, part: str) -> None:
    """Text, and tokens that skip, come out as if the part had been run for all and zeroed for some."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    with silenced(model, part, skipping(family, batch, 0.3)):
        expected = tiny.text_logits(model, batch)
    with foveate.compress(model, Skips(ratio=0.3, part=part)):
        close(tiny.text_logits(model, batch), expected)
    assert (tiny.text_logits(model, batch) - expected).abs().max() > 1e-2


@kinds
@part
def test_every_structure(family: str, part: str) -> None:
    """A batch is its rows; cached decoding is a full forward; keys of all tokens are cached; taken off, nothing is left."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    method = skip(family, part)
    with left_as_it_was(model, batch) as stock, torch.no_grad(), foveate.compress(model, method) as handle:
        out = generate(model, batch, return_dict_in_generate=True, output_logits=True)
        assert handle.report().kv_ratio == 1.0
        full = model(**tiny.longer(family, batch, out.sequences)).logits[:, -5:-1]
        close(torch.stack(out.logits, 1), full)
        assert (tiny.text_logits(model, batch) - stock).abs().max() > 1e-2
        for i in range(len(ROWS[family])):
            alone = generate(model, tiny.inputs(family, ROWS[family], only=i))
            assert torch.equal(alone[0, -4:], out.sequences[i, -4:])


@whole
@part
def test_keeping_all_is_stock(family: str, part: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with left_as_it_was(model, batch) as stock, foveate.compress(model, Skips(ratio=1.0, part=part)):
        assert torch.equal(tiny.text_logits(model, batch), stock)


@whole
@part
def test_with_pruners(family: str, part: str) -> None:
    """Beside methods that drop tokens, at the same layer and at others; with new positions, beams, and no cache."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    probe = Skips(ratio=0.4, part=part)
    with torch.no_grad():
        cuts = At((Site("decoder", 0), Site("decoder", 3)), positions="renumber")
        renumbered = Skips(part=part, positions="renumber") + cuts
        for method in (probe + FastV(layer=2, ratio=0.5), renumbered):
            with foveate.compress(model, method) as handle:
                out = generate(model, batch, num_beams=2)
                assert handle.report().kv_ratio < 1
                for i in range(len(ROWS[family])):
                    alone = generate(model, tiny.inputs(family, ROWS[family], only=i), num_beams=2)
                    assert torch.equal(alone[0, -4:], out[i, -4:])
        with foveate.compress(model, renumbered):
            assert torch.equal(generate(model, batch), generate(model, batch, use_cache=False))


@whole
@part
@pytest.mark.parametrize("pruned", [False, True])
def test_flops(family: str, impl: str, part: str, pruned: bool) -> None:
    """By formula as counted, signals included; and fewer than the stock model's."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    method = skip(family, part) + FastV(layer=first(family) + 1) if pruned else skip(family, part)
    with torch.no_grad(), foveate.compress(model, method) as handle:
        flops = counted(impl, lambda: model(**batch))
        report = handle.report()
    assert flops == sum(report.flops.values())
    assert report.flops_ratio < 1
    assert f"{part} (skip)" in str(report)


def loss_and_gradients(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@whole
@part
def test_training(family: str, part: str) -> None:
    """Gradients are those of the silenced model; a checkpointed layer, which would be replayed without us, is refused."""
    model = tiny.model(family, fresh=True)
    batch = tiny.inputs(family, ROWS[family], padding_side="right")
    with silenced(model, part, skipping(family, batch, 0.3)):
        loss, gradients = loss_and_gradients(model, batch)
    with foveate.compress(model, Skips(ratio=0.3, part=part)):
        ours, same = loss_and_gradients(model, batch)
        close(ours, loss)
        for a, b in zip(same, gradients, strict=True):
            close(a, b, 1e-3)
        model.train().gradient_checkpointing_enable()
        with pytest.raises(UnsupportedSiteError, match="gradient checkpointing"):
            loss_and_gradients(model, batch)
    model.gradient_checkpointing_disable()


@whole
def test_signals_of_a_layer_that_tokens_skip(family: str, impl: str) -> None:
    """What is read of that attention is what silent queries leave of it: the rows of text, and attention received from them."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    for signal in ("last_row", "text_rows"):
        seen: list[Tensor] = []
        reader = Reads((Site("decoder", 1, 1.0, signals=(signal,)),), seen=seen)
        for method in (reader, At((Site("decoder", 0, 0.5, action="skip", part="attention"),)) + reader):
            with torch.no_grad(), foveate.compress(model, method):
                model(**batch)
        close(seen[0], seen[1])


class Reads(At):
    """Keeps everything, and what it saw."""

    def __init__(self, places: tuple[Site, ...], seen: list[Tensor]) -> None:
        super().__init__(places)
        object.__setattr__(self, "seen", seen)

    def reduce(self, tokens: Any, site: Site) -> Any:
        self.seen.append(tokens.signals[site.signals[0]])  # type: ignore[attr-defined]
        return tokens.keep_indices(torch.arange(len(tokens)))


def test_refusals() -> None:
    model = tiny.model("llava")
    for site, sentence in {
        "action": lambda: Site("decoder", 1, action="skip"),
        "part of a decoder layer": lambda: Site("tower", 1, action="skip", part="ffn"),
        "whole layer": lambda: Site("decoder", 1, part="ffn"),
        "for part": lambda: Site("decoder", 1, action="channels", part="attention"),
    }.items():
        with pytest.raises(ConfigError, match=site):
            sentence()
    refused(
        tiny.model("qwen3_5"),
        At((Site("decoder", 0, action="skip", part="attention"),)),
        UnsupportedSiteError,
        "carries a state",
    )
    residual = At((Site("decoder", 1, action="skip", part="ffn", signals=("residual",)),))
    refused(model, residual, UnsupportedSiteError, "residual, which is of a whole layer")
