"""Models as they are loaded or wrapped elsewhere: dispatched with offloading, quantised layers, adapters, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, generate
from plans import PLANS
from snapshot import state_of
from torch import Tensor, nn

import foveate

FAMILIES = ("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl")
every = pytest.mark.parametrize("family", FAMILIES)
FEW = ["fastv", "tome", "visionzip", "luvc", "ipcv", "downsample", "renumber"]


def few(family: str) -> list[str]:
    """By turns a part of them, so that each has one of the two families that every method is asked of, and another one."""
    among = tiny.WHOLE if family in tiny.WHOLE else tuple(each for each in FAMILIES if each not in tiny.WHOLE)
    return FEW[among.index(family) :: len(among)]


LOGITS: dict[str, Any] = dict(output_logits=True, return_dict_in_generate=True)


def said(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    with torch.no_grad():
        out: Any = generate(model, batch, **LOGITS)
        return out.sequences, list(out.logits)


# -- accelerate ---------------------------------------------------------------------------------------------------------


@every
def test_weights_on_disk(family: str, tmp_path: Path) -> None:
    """A hook around every module brings its weights when it runs, and takes them away again."""
    accelerate = pytest.importorskip("accelerate")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    away = tiny.model(family, fresh=True)
    accelerate.disk_offload(away, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(p.device.type == "meta" for p in away.parameters())
    for plan in few(family):
        if plan == "downsample" and family in tiny.LLAVA:
            continue  # stock CLIP resizes position embeddings without calling the module that would bring them
        with foveate.compress(model, PLANS[plan]) as here, foveate.compress(away, PLANS[plan]) as there:
            assert torch.equal(tiny.text_logits(away, batch), tiny.text_logits(model, batch)), plan
            a, b = here.report().flops, there.report().flops
            # Of parked tokens keys and values alone, where a plain layer makes them with the queries.
            assert a == b or (plan == "ipcv" and family in tiny.PACKED and a["tower"] < b["tower"])
            if family != "llava_next":  # stock generate() asks for its newline, which no hook brings
                assert torch.equal(generate(away, batch), generate(model, batch)), plan


@every
def test_a_device_map(family: str) -> None:
    """Parts of the model on devices of their own; with one device here, that is hooks around every part."""
    accelerate = pytest.importorskip("accelerate")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    parts = tiny.model(family, fresh=True)
    names = [f"model.{name}" for name, _ in parts.model.named_children()] + ["lm_head"]
    layers = [f"model.language_model.{name}" for name, _ in parts.model.language_model.named_children()]
    names = [name for name in names if name != "model.language_model"] + layers
    names += [f"model.{name}" for name, _ in parts.model.named_parameters(recurse=False)]
    accelerate.dispatch_model(parts, dict.fromkeys(names, "cpu"), main_device="cpu", force_hooks=True)
    for plan in few(family):
        with foveate.compress(model, PLANS[plan]), foveate.compress(parts, PLANS[plan]):
            expected, ours = said(model, batch), said(parts, batch)
            assert torch.equal(ours[0], expected[0]), plan
            assert all(map(torch.equal, ours[1], expected[1])), plan


# -- other layers -------------------------------------------------------------------------------------------------------


class EightBit(nn.Linear):
    """A linear layer as quantisation libraries put in the place of the model's: another class, packed weights of another
    shape and type, an output in the type of the input."""

    @classmethod
    def replace(cls, layer: nn.Linear) -> None:
        weight = layer.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        packed = (weight / scale).round().to(torch.int8).view(-1, 1)
        layer.__class__ = cls
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.out_features, self.in_features).to(x.dtype) * self.get_buffer("scale").to(
            x.dtype
        )
        return nn.functional.linear(x, weight, self.bias)


def quantised(family: str) -> Any:
    model = tiny.model(family, fresh=True)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name != "lm_head":
            EightBit.replace(module)
    return model


@every
def test_quantised_layers(family: str) -> None:
    """Nothing looks at weights: what is left of a batch is what is left of its rows, and FLOPs are counted as before."""
    model, rows = quantised(family), ROWS[family]
    batch = tiny.inputs(family, rows)
    stock = said(model, batch)
    with foveate.compress(model, foveate.LUVC(keep=1.0)):
        ours = said(model, batch)
    assert torch.equal(ours[0], stock[0])
    assert all(map(torch.equal, ours[1], stock[1]))
    for plan in few(family):
        with foveate.compress(model, PLANS[plan]) as handle, foveate.compress(tiny.model(family), PLANS[plan]) as plain:
            together = said(model, batch)
            said(tiny.model(family), batch)
            a, b = handle.report().flops, plain.report().flops
            assert a == b or (plan == "ipcv" and family in tiny.PACKED and a["tower"] > b["tower"])
            for i in range(len(rows)):
                alone = said(model, tiny.inputs(family, rows, only=i))
                for x, y in zip(together[1], alone[1], strict=True):
                    close(x[i], y[0])


@every
def test_a_model_with_an_adapter(family: str) -> None:
    """Compressed through its wrapper, which goes on to switch the adapter on and off."""
    peft = pytest.importorskip("peft")
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS[family])
    with foveate.compress(model, PLANS["ipcv"]):
        plain = said(model, batch)
    torch.manual_seed(1)
    targets = r".*\.(q_proj|v_proj|qkv|down_proj|fc2|linear_fc2)"
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    stock = said(wrapped, batch)
    with foveate.compress(wrapped, foveate.LUVC(keep=1.0)):
        assert all(map(torch.equal, said(wrapped, batch)[1], stock[1]))
    with foveate.compress(wrapped, PLANS["ipcv"]):
        adapted = said(wrapped, batch)
        assert not torch.equal(adapted[1][0], plain[1][0])
        with wrapped.disable_adapter():
            for a, b in zip(said(wrapped, batch)[1], plain[1], strict=True):
                close(a, b)
        wrapped.merge_adapter()
        for a, b in zip(said(wrapped, batch)[1], adapted[1], strict=True):
            close(a, b)
        wrapped.unmerge_adapter()
    before = state_of(wrapped.get_base_model())
    with foveate.compress(wrapped, PLANS["ipcv"]):
        said(wrapped, batch)
    assert state_of(wrapped.get_base_model()) == before
