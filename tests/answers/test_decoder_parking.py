"""Visual tokens that leave the decoder for some layers: against a stock model whose layers are told to leave them alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import HOOKS_AROUND_CHECKPOINTS, ROWS, close, counted, generate
from contract import (
    PROPERTIES,
    Property,
    a_batch_is_its_rows,
    a_later_turn_goes_on_with_the_cache,
    generation_of_a_batch_is_that_of_its_rows,
)
from probes.layer_skip import LayerSkip
from probes.synthetic import Skips
from refusals import At, refused
from torch import Tensor

import foveate
from foveate import FastV, Parked, Reduction, Site, Tokens
from foveate.errors import UnsupportedSiteError
from foveate.lab.story import tell
from foveate.models import family_of
from foveate.runtime.attach import host_of
from foveate.serving.plan import make_plan

whole = pytest.mark.parametrize("family", tiny.WHOLE)
read = pytest.mark.parametrize("read", [False, True], ids=["away", "read"])


@pytest.mark.parametrize("check", PROPERTIES)
@whole
@read
def test_properties(family: str, check: Property, read: bool) -> None:
    check(family, LayerSkip(ratio=0.4, read=read))


@contextmanager
def left_alone(model: Any, away: Tensor, layers: Sequence[int], read: bool) -> Iterator[None]:
    """Stock layers that do not change the rows ``away (B, L)``, and, unless they may ``read`` them, do not see them."""
    length = away.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]

    def hide(module: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"]
        seen = (causal if mask is None else mask) & ~away[:, None, None, :]
        seen = seen | torch.eye(length, dtype=torch.bool)  # (a row that sees nothing is NaN)
        return args, {**kwargs, "attention_mask": seen}

    def keep(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.where(away[..., None], args[0], output)

    handles = [tiny.lm(model).layers[i].register_forward_hook(keep) for i in layers]
    if not read:
        handles += [tiny.lm(model).layers[i].register_forward_pre_hook(hide, with_kwargs=True) for i in layers]
    yield
    for handle in handles:
        handle.remove()


@dataclass(frozen=True)
class Chosen(LayerSkip):
    """Parks tokens by their place in the image."""

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask(tokens.index % 3 == 0)


@whole
@read
def test_layers_leave_them_alone(family: str, impl: str, read: bool) -> None:
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    visual = tiny.visual_mask(family, batch)
    away = visual.clone()
    seen: list[Tensor] = []

    class Note(Chosen):
        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            seen.append(tokens.index)
            return super().reduce(tokens, site)

    with foveate.compress(model, Note(read=read)) as handle:
        found = tiny.text_logits(model, batch)
        lengths = handle.report().layer_tokens
    away[visual] = seen[0] % 3 != 0
    stock = tiny.model(family)
    with left_alone(stock, away, (2, 3), read):
        close(found, tiny.text_logits(stock, batch))
    assert lengths[2] == lengths[3] < lengths[4] == lengths[0]


@pytest.mark.parametrize(("family", "impl"), [("llava", "eager"), ("qwen2_5_vl", "sdpa")])
@read
def test_cache_and_flops(family: str, impl: str, read: bool) -> None:
    """The layers between hold fewer, unless they read them; FLOPs by formula as counted; the report and the story say so."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    for method in (
        LayerSkip(ratio=0.3, read=read),
        LayerSkip(ratio=0.3, read=read) + Skips(first=1) + FastV(layer=5),
    ):
        with torch.no_grad(), foveate.compress(model, method) as handle:
            flops = counted(impl, lambda: model(**batch))
            report = handle.report()
        assert flops == sum(report.flops.values())
        lengths = report.kv_lengths
        assert lengths[0] == lengths[1] == lengths[4]
        assert (lengths[2] == lengths[3] == lengths[0]) if read else (lengths[2] == lengths[3] < lengths[0])
        assert (lengths[5] < lengths[4]) == (method.parts()[0] is not method)


@pytest.mark.parametrize("family", [*tiny.STRUCTURES, "gemma4"])
@read
def test_every_structure(family: str, read: bool) -> None:
    """Recurrent and sliding layers, layers with keys of others, features added between layers: a batch is its rows, a cached
    step a full forward."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    attends = [i for i, layer in enumerate(tiny.lm(model).layers) if hasattr(layer, "self_attn")]
    sites = [Site("decoder", i, action="attend") for i in attends if read and 1 <= i < 4]
    method = Halves((Site("decoder", 1, action="park"), *sites, Site("decoder", 4, action="restore")))
    with torch.no_grad(), foveate.compress(model, method):
        out = generate(model, batch, return_dict_in_generate=True, output_logits=True)
        full = model(**tiny.longer(family, batch, out.sequences)).logits[:, -5:-1]
        close(torch.stack(out.logits, 1), full)
        for i in range(len(ROWS[family])):
            alone = generate(model, tiny.inputs(family, ROWS[family], only=i))
            assert torch.equal(alone[0, -4:], out.sequences[i, -4:])


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_the_first_layer_that_slides_alone_holds_fewer(family: str) -> None:
    """Stock code asks its cache entry for the mask of all that slide."""
    for check in (a_batch_is_its_rows, generation_of_a_batch_is_that_of_its_rows, a_later_turn_goes_on_with_the_cache):
        check(family, LayerSkip(ratio=0.4, first=0, last=1))


class Halves(At):
    """Parks every second token; those come back twice as large."""

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        return (1.1 * parked.tokens.hidden).index_copy(0, parked.keep, tokens.hidden)


@whole
def test_with_pruners_and_new_positions(family: str) -> None:
    """A pruner before, and one after; beams, chunks, positions that are numbered anew."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    before = At((Site("decoder", 1),))
    for method in (
        before + LayerSkip(ratio=0.5, read=True) + FastV(layer=5),
        LayerSkip(ratio=0.5, positions="renumber") + At((Site("decoder", 4),), positions="renumber"),
    ):
        with torch.no_grad(), foveate.compress(model, method):
            out = generate(model, batch, num_beams=2)
            for i in range(len(ROWS[family])):
                alone = generate(model, tiny.inputs(family, ROWS[family], only=i), num_beams=2)
                assert torch.equal(alone[0, -4:], out[i, -4:])
            if method.positions == "renumber" or method.parts()[0].positions == "renumber":
                assert torch.equal(generate(model, batch), generate(model, batch, use_cache=False))


@whole
def test_a_later_reduction_sees_all(family: str) -> None:
    """Where the last layer before it has read the parked tokens, a pruner ranks all of them; and else it is refused."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    seen: list[int] = []

    class Counts(FastV):
        def score(self, tokens: Tokens, site: Site) -> Tensor:
            seen.append(len(tokens))
            return super().score(tokens, site)

    with foveate.compress(model, LayerSkip(ratio=0.5, read=True) + Counts(layer=4)):
        tiny.text_logits(model, batch)
    assert seen == [int(tiny.visual_mask(family, batch).sum())]
    refused(model, LayerSkip() + FastV(layer=4), UnsupportedSiteError, "has not seen them: use layer 5 or later")


def test_refusals() -> None:
    model = tiny.model("llava")

    def at(*sites: Site) -> At:
        return At(sites)

    park, attend, restore = (
        (lambda layer, action=action: Site("decoder", layer, action=action)) for action in ("park", "attend", "restore")
    )
    refused(model, at(restore(2)), UnsupportedSiteError, "restores, but nothing is parked")
    refused(model, at(attend(2)), UnsupportedSiteError, "attends to parked tokens, but nothing is parked")
    refused(model, at(park(2)), UnsupportedSiteError, "parks tokens in the decoder and never restores")
    refused(model, LayerSkip() + FastV(layer=3), UnsupportedSiteError, "are parked since decoder 2")
    unseen = at(park(2), Site.sight(3), restore(4))  # which would say nothing of those that come back
    refused(model, unseen, UnsupportedSiteError, "are parked since decoder 2")
    both = LayerSkip(read=True) + Skips(part="attention")
    refused(model, both, UnsupportedSiteError, "some of these skip it")
    hybrid = tiny.model("qwen3_5")
    state = next(i for i, layer in enumerate(tiny.lm(hybrid).layers) if not hasattr(layer, "self_attn"))
    refused(hybrid, at(park(state), attend(state), restore(state + 1)), UnsupportedSiteError, "carries a state")
    family = family_of(model.config)
    with pytest.raises(UnsupportedSiteError, match="parks tokens in the decoder"):
        make_plan(LayerSkip(), host_of(model, family), family, model.config)


@pytest.mark.skipif(not HOOKS_AROUND_CHECKPOINTS, reason="older versions run layer hooks again inside the checkpoint")
def test_a_checkpointed_layer_that_reads_is_refused() -> None:
    """It would be replayed without us; one that tokens go around is not touched inside."""
    model = tiny.model("llava", fresh=True).train()
    batch = tiny.inputs("llava", ROWS["llava"])
    model.gradient_checkpointing_enable()
    with foveate.compress(model, LayerSkip()):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    with foveate.compress(model, LayerSkip(read=True)), pytest.raises(UnsupportedSiteError, match="checkpointing"):
        model(**batch, labels=batch["input_ids"])


def test_the_story() -> None:
    """Parked and restored tokens are drawn, and which layers read them."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    with foveate.compress(model, LayerSkip(read=True)) as handle, handle.trace() as trace:
        tiny.text_logits(model, batch)
        story = tell(trace(), handle.report())
    states = ["".join(story.frames[i].states for i in shown) for shown in story.shown[-7:-1]]
    assert [set(found) for found in states] == [{"a"}, {"a"}, {"l"}, {"l"}, {"r"}, {"r"}]
