"""Whose text ranks: samples packed into one row, and padding that a mask of another shape says."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from calls import close
from plans import PLANS
from torch import Tensor

import foveate
from foveate.errors import InputError
from foveate.runtime.samples import begins_in, present_in, samples_of

ITEMS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4], [1, "image", 2, "image", 3]]
METHODS = {
    "fastv": foveate.FastV(layer=2),
    "signals": PLANS["signals"],
    "stride": foveate.Stride(layers=(0, 2)),
    "divprune": foveate.DivPrune(keep=0.5),
    "remembered": foveate.AIR(layers=(2, 4), outliers=4, window=2, into="text") + foveate.Stride(layers=(1,)),
    "ipcv+fastv": foveate.IPCV() + foveate.FastV(layer=2),
}


def packed(family: str, model: Any) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """All samples in one row, positions of each starting anew, and each alone."""
    alone = [tiny.inputs(family, [row], seed=i) for i, row in enumerate(ITEMS)]
    made: dict[str, Tensor] = {}
    for name in alone[0]:
        if name != "attention_mask":
            images = name.startswith(("pixel", "image", "target", "batch"))
            made[name] = torch.cat([batch[name] for batch in alone], 0 if images else 1)
    counts = torch.cat([torch.arange(batch["input_ids"].shape[1]) for batch in alone])[None]
    made["position_ids"] = counts
    if family in tiny.PACKED:
        made["position_ids"] = torch.cat([counts[None], *[torch.cat([tiny.positions(model, b) for b in alone], -1)]])
    return made, alone


def text_of(family: str, logits: Tensor, alone: list[dict[str, Tensor]]) -> list[Tensor]:
    """The logits of each sample's text."""
    rows = logits[0].split([batch["input_ids"].shape[1] for batch in alone])
    return [row[~tiny.visual_mask(family, batch)[0]] for row, batch in zip(rows, alone, strict=True)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next", "internvl", "mistral3", "qwen3_vl"])
def test_samples_of_a_row_are_what_they_are_alone(family: str, name: str, impl: str) -> None:
    model = tiny.model(family, impl)
    row, alone = packed(family, model)
    with torch.no_grad():
        stock = text_of(family, model(**row, use_cache=False).logits, alone)
        for ours, batch in zip(stock, alone, strict=True):  # or there is nothing to keep
            close(ours, model(**batch).logits[0][~tiny.visual_mask(family, batch)[0]])
        with foveate.compress(model, METHODS[name]):
            together = text_of(family, model(**row, use_cache=False).logits, alone)
            for ours, batch in zip(together, alone, strict=True):
                close(ours, model(**batch).logits[0][~tiny.visual_mask(family, batch)[0]])


@pytest.mark.parametrize("name", ["fastv", "signals", "stride"])
@pytest.mark.parametrize("kind", ["float", "bool"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_a_mask_of_four_axes_says(name: str, kind: str, side: str, impl: str) -> None:
    if impl == "eager" and kind == "bool":
        pytest.skip("stock eager attention adds masks")
    model, rows = tiny.model("llava", impl), ITEMS[:2]
    batch = tiny.inputs("llava", rows, padding_side=side)
    real = batch["attention_mask"].bool()
    length = real.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None] & real[:, None, None]
    lowest = torch.finfo(torch.float32).min
    mask = seen if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, lowest)
    positions = (real.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), foveate.compress(model, METHODS[name]):
        together = model(**{**batch, "attention_mask": mask, "position_ids": positions}).logits
        for i in range(len(rows)):
            alone = tiny.inputs("llava", rows, only=i)
            close(
                together[i][real[i]][~tiny.visual_mask("llava", alone)[0]],
                text_of("llava", model(**alone).logits, [alone])[0],
            )


@pytest.mark.parametrize("how", ["lengths", "numbers", "mask", "mask of flex"])
def test_where_samples_begin(how: str) -> None:
    """Said in another way than by positions."""
    number = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    seen = (number[:, :, None] == number[:, None]).tril()[:, None]
    kwargs, mask = {}, None
    if how == "lengths":
        kwargs["cu_seq_lens_q"] = torch.tensor([0, 3, 5, 8], dtype=torch.int32)
    elif how == "numbers":
        kwargs["seq_idx"] = number
    elif how == "mask":
        mask = seen
    else:
        from torch.nn.attention.flex_attention import create_block_mask

        mask = create_block_mask(  # type: ignore[assignment]
            lambda b, h, q, k: seen[b, 0, q, k], 1, None, 8, 8, device="cpu"
        )
    begins = begins_in(kwargs, mask, 1, 8, 0)
    visual = torch.tensor([[0, 1, 0, 1, 0, 0, 1, 0]]).bool()
    samples = samples_of(visual, torch.ones(1, 8, dtype=torch.bool), begins, torch.device("cpu"))
    assert torch.equal(samples.number, number)
    assert samples.last.tolist() == [[2, 4, 7]]
    assert samples.question.tolist() == [[[2], [4], [7]]]


def test_a_mask_that_says_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3, 4\) does not say which of 4 tokens are padding"):
        present_in(torch.ones(2, 3, 4), 2, 4, 0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("how", ["cu_seq_lens_q", "seq_idx"])
def test_lengths_and_numbers_beside_positions(family: str, how: str) -> None:
    """What tells kernels that are not in use here changes nothing."""
    model = tiny.model(family)
    row, alone = packed(family, model)
    lengths = torch.tensor([batch["input_ids"].shape[1] for batch in alone])
    more: dict[str, Any] = {"seq_idx": torch.arange(3).repeat_interleave(lengths)[None].int()}
    if how == "cu_seq_lens_q":
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        more = dict(
            cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=int(lengths.max()), max_length_k=int(lengths.max())
        )
    for method in (
        foveate.FastV(layer=2),
        foveate.VisionZip(keep=0.5),
        foveate.ToMe(keep=0.7) + foveate.FastV(layer=2),
    ):
        with torch.no_grad(), foveate.compress(model, method):
            together = text_of(family, model(**row, **more, use_cache=False).logits, alone)
            for ours, batch in zip(together, alone, strict=True):
                close(ours, model(**batch).logits[0][~tiny.visual_mask(family, batch)[0]])


def test_the_sound_of_a_video_begins_no_sample() -> None:
    """Its time goes back to where the frames began, on all axes; a sample's goes back to zero."""
    ids = torch.tensor([0, 1, 2, 2, 3, 3, 2, 3, 4, 5, 0, 1])[None].expand(3, 1, -1).clone()
    ids[1:, 0, 2:6] += torch.tensor([0, 1, 0, 1])
    begins = begins_in({"position_ids": ids}, None, 1, 12, 0)
    assert begins is not None
    assert begins[0].nonzero().flatten().tolist() == [10]
