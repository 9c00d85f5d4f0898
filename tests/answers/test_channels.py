"""Visual tokens that use some channels of an FFN: against plain loops over the full weights, and in every mode."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, counted
from contract import PROPERTIES, Property
from probes.dynamic_ffn import DynamicFfn
from refusals import At, left_as_it_was, refused
from torch import Tensor, nn

import foveate
from foveate import Channels, FastV, Host, Method, Site, Tokens
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.lab.story import tell
from foveate.models import family_of
from foveate.runtime.attach import host_of
from foveate.serving.plan import make_plan

whole = pytest.mark.parametrize("family", tiny.WHOLE)
SITE = Site("decoder", 1, action="channels", part="ffn")


@dataclass(frozen=True)
class Fixed(Method):
    """The same channels at every call."""

    say: Callable[[Tokens], Any] = lambda tokens: Channels(torch.arange(0, 96, 7))
    layers: tuple[int, ...] = (1, 3)

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", layer, action="channels", part="ffn") for layer in self.layers]

    def answer(self, tokens: Tokens, site: Site) -> Any:
        return self.say(tokens)


@pytest.mark.parametrize("check", PROPERTIES)
@whole
def test_properties(family: str, check: Property) -> None:
    check(family, DynamicFfn())


@contextmanager
def by_hand(model: Any, visual: Tensor, layers: Sequence[int], chosen: Tensor) -> Iterator[None]:
    """Stock layers in which every visual row is computed channel by channel."""

    def replace(module: Any, args: Any, output: Tensor) -> Tensor:
        x, out = args[0], output.clone()
        gate, up = (
            module.gate_up_proj(x).chunk(2, -1)
            if hasattr(module, "gate_up_proj")
            else (module.gate_proj(x), module.up_proj(x))
        )
        act = module.activation_fn if hasattr(module, "activation_fn") else module.act_fn
        for b, place in visual.nonzero().tolist():
            row = torch.zeros_like(out[b, place])
            for channel in chosen.tolist():
                strength = act(gate[b, place, channel]) * up[b, place, channel]
                row += strength * module.down_proj.weight[:, channel]
            out[b, place] = row
        return out

    handles = [tiny.lm(model).layers[i].mlp.register_forward_hook(replace) for i in layers]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "glm4v", "gemma3"])
def test_channel_by_channel(family: str) -> None:
    """Separate and fused projections, and a norm after the FFN; text has all channels."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    with left_as_it_was(model, batch):
        with torch.no_grad(), by_hand(model, tiny.visual_mask(family, batch), (1, 3), torch.arange(0, 96, 7)):
            expected = tiny.text_logits(model, batch)
        with foveate.compress(model, Fixed()) as handle:
            close(tiny.text_logits(model, batch), expected)
            assert "use 14 of 96 channels" in str(handle.report())


@whole
def test_prompts_of_a_batch_have_their_own(family: str) -> None:
    """A choice for each prompt is that of the prompt alone."""
    model, rows = tiny.model(family), ROWS[family]
    own = Fixed(
        lambda tokens: Channels(
            torch.stack([torch.arange(30), torch.arange(60, 90)]), tuple(n % 2 for n in tokens.spans.row)
        )
    )
    batch, alone = tiny.inputs(family, rows), tiny.inputs(family, rows, only=0)
    with torch.no_grad():
        with foveate.compress(model, Fixed(lambda tokens: Channels(torch.arange(30)))):
            expected = model(**alone).logits[0, -1]
        with foveate.compress(model, own):
            close(model(**batch).logits[0, -1], expected)


@whole
def test_flops_and_pruners(family: str, impl: str) -> None:
    """By formula as counted, what a method computes to choose included; beside a method that drops tokens."""
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    for method in (DynamicFfn(), DynamicFfn(layers=(0, 3)) + FastV(layer=2)):
        with torch.no_grad(), foveate.compress(model, method) as handle:
            flops = counted(impl, lambda: model(**batch))
            report = handle.report()
        assert flops == sum(report.flops.values())
        assert report.flops_ratio < 1


def test_weights_are_copied_once_and_follow_training() -> None:
    """A choice that does not change is copied once; again when the weights were trained, or replaced; and not longer than it
    lives."""
    model, batch = tiny.model("llava", fresh=True), tiny.inputs("llava", ROWS["llava"])
    same = Channels(torch.arange(20))
    ffn = tiny.lm(model).layers[1].mlp
    handle = foveate.compress(model, Fixed(lambda tokens: same, layers=(1,)))
    runtime: Any = handle._runtime
    gated = runtime.decoder.parts[1].gated
    first = tiny.text_logits(model, batch)
    copied = gated._copied.weights[None][0]
    assert torch.equal(tiny.text_logits(model, batch), first)
    assert gated._copied.weights[None][0] is copied
    with torch.no_grad():
        ffn.gate_proj.weight.mul_(3.0)
    changed = tiny.text_logits(model, batch)
    assert not torch.equal(changed, first)
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert gated._copied is None
    assert ffn.gate_proj.weight.grad[:20].norm() > 0
    with torch.no_grad(), torch.inference_mode():
        close(model(**batch).logits[batch["attention_mask"].bool()], changed)
    tiny.text_logits(model, batch)
    assert gated._copied is not None
    same = Channels(torch.arange(10))
    gc.collect()
    assert gated._copied is None
    handle.remove()


def test_refusals() -> None:
    llava = tiny.model("llava")
    refused(tiny.model("qwen3_vl_moe"), Fixed(), UnsupportedSiteError, "no gated FFN of plain linear layers")
    refused(llava, DynamicFfn() + Fixed(), UnsupportedSiteError, "both choose the channels at decoder 1 ffn")
    batch = tiny.inputs("llava", ROWS["llava"])
    answers: dict[str, Any] = {
        "expected Channels": At().reduce,
        r"index is float32 \(3,\), expected int64 \(K,\)": lambda tokens: Channels(torch.rand(3)),
        "index has 0 channels, expected 1 to 96": lambda tokens: Channels(torch.arange(0)),
        "not ascending": lambda tokens: Channels(torch.tensor([3, 2])),
        "not ascending from 0 to 95": lambda tokens: Channels(torch.tensor([3, 96])),
        "for each of the 3 spans a row of index": lambda tokens: Channels(torch.zeros(2, 1).long(), (0, 2, 1)),
    }
    for sentence, say in answers.items():
        wrong = Fixed(say) if sentence != "expected Channels" else At((SITE,))
        with foveate.compress(llava, wrong), pytest.raises(ConfigError, match=sentence):
            tiny.text_logits(llava, batch)
    quantised: Any = tiny.model("llava", fresh=True)
    tiny.lm(quantised).layers[1].mlp.gate_proj = nn.Sequential(nn.Identity())
    refused(quantised, Fixed(), UnsupportedSiteError, "quantised, adapted")


def test_serving_and_the_report() -> None:
    """An engine that runs layers whole refuses; the story names what happened, and who skipped."""
    model = tiny.model("llava")
    family, batch = family_of(model.config), tiny.inputs("llava", [[3, "image", 5]])
    skipping = At((Site("decoder", 2, action="skip", part="ffn"),))
    for method in (Fixed(), skipping):
        with pytest.raises(UnsupportedSiteError, match="changes a part of a layer"):
            make_plan(method, host_of(model, family), family, model.config)
    with foveate.compress(model, Fixed(layers=(1,)) + skipping) as handle, handle.trace() as trace:
        tiny.text_logits(model, batch)
        story = tell(trace(), handle.report())
    acts = {step.name: story.acts[i] for i, step in enumerate(story.steps) if story.acts[i]}
    n = story.full_tokens[0]
    assert {name: (act.action, act.before, act.after, act.says) for name, (act,) in acts.items()} == {
        "Decoder layer 1": ("channels", n, n, "visual tokens use 14 of 96 channels"),
        "Decoder layer 2": ("skip", n, n // 2, ""),
    }
    states = ["".join(story.frames[i].states for i in shown) for shown in story.shown[-7:-1]]
    assert [found.count("s") for found in states] == [0, 0, n - n // 2, 0, 0, 0]
