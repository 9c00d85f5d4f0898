"""Invariants 2, 3, 4, 8, 10, 11, 12: a batch is its rows, a cached step is a full forward, lengths are the schedule."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from plans import PLANS, ROWS, close, depends_on_text, plan, video_rows
from test_identity import generate

import foveate


@plan
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_is_its_rows(family: str, impl: str, plan: str, side: str) -> None:
    model, rows = tiny.model(family, impl), ROWS[family]
    batch = tiny.inputs(family, rows, padding_side=side)
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together = model(**batch).logits
        for i in range(len(rows)):
            alone = tiny.inputs(family, rows, only=i)
            text = ~tiny.visual_mask(family, alone)[0]
            row = together[i][batch["attention_mask"][i].bool()]
            close(row[text], model(**alone).logits[0][text])


@plan
def test_generation_of_a_batch_is_that_of_its_rows(family: str, plan: str) -> None:
    model, rows = tiny.model(family), ROWS[family]
    options = dict(output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together: Any = generate(model, tiny.inputs(family, rows), **options)
        for i in range(len(rows)):
            alone: Any = generate(model, tiny.inputs(family, rows, only=i), **options)
            assert torch.equal(together.sequences[i, -4:], alone.sequences[0, -4:])
            for step in range(4):
                close(together.logits[step][i], alone.logits[step][0])


@plan
def test_a_cached_step_is_a_full_forward(family: str, impl: str, plan: str) -> None:
    if depends_on_text(plan):
        pytest.skip("a longer prompt has another last token, which chooses other tokens")
    model, rows = tiny.model(family, impl), ROWS[family]
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        batch = tiny.inputs(family, rows)
        steps: Any = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        length = batch["input_ids"].shape[1]
        full = model(**tiny.longer(family, batch, steps.sequences)).logits
        for step in range(4):
            close(full[:, length - 1 + step], steps.logits[step])


@plan
def test_attention_implementations_agree(family: str, plan: str) -> None:
    batch = tiny.inputs(family, ROWS[family])
    logits = []
    for impl in ("sdpa", "eager"):
        with foveate.compress(tiny.model(family, impl), PLANS[plan]):
            logits.append(tiny.text_logits(tiny.model(family, impl), batch))
    text = ~tiny.visual_mask(family, batch)[batch["attention_mask"].bool()]
    close(logits[0][text], logits[1][text])


def test_cache_lengths_are_the_schedule(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    visual = int(tiny.visual_mask(family, batch).sum())
    text = batch["input_ids"].shape[1] - visual
    half, quarter = (visual + 1) // 2, ((visual + 1) // 2 + 1) // 2
    with torch.no_grad(), foveate.compress(model, foveate.Stride(keep=0.5, layers=(2, 4))) as handle:
        cache = model(**batch).past_key_values
        report = handle.report()
    expected = [text + n for n in (visual, visual, half, half, quarter, quarter)]
    held = [min(n, tiny.gemma.window(family, i) or n) for i, n in enumerate(expected)]
    held, entries = tiny.of_attention(family, held), tiny.entries(cache)
    assert [entry.keys.shape[-2] for entry in entries] == held
    assert [entry.get_seq_length() for entry in entries] == [text + visual] * len(held)
    assert list(report.kv_lengths) == held
    assert list(report.layer_tokens) == expected
    assert report.kv_bytes == sum(entry.keys.nbytes + entry.values.nbytes for entry in entries)
    assert [sum(visit.after) for visit in report.visits] == [half, quarter]


@plan
@pytest.mark.parametrize("family", tiny.VIDEO)
def test_video_and_image_in_one_batch(family: str, plan: str) -> None:
    rows = video_rows(family)
    model, batch = tiny.model(family), tiny.inputs(family, rows)
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together = model(**batch).logits
        for i in range(2):
            alone = tiny.inputs(family, rows, only=i)
            text = ~tiny.visual_mask(family, alone)[0]
            row = together[i][batch["attention_mask"][i].bool()]
            close(row[text], model(**alone).logits[0][text])


def test_spans_are_frames(family: str) -> None:
    if family not in tiny.PACKED:
        pytest.skip("no videos of several sizes")
    model, batch = tiny.model(family), tiny.inputs(family, video_rows(family))
    with torch.no_grad(), foveate.compress(model, foveate.Stride(keep=0.5)) as handle:
        model(**batch)
        visit = handle.report().visits[0]
    # 2 frames of 2x4; perhaps an image of 4x8 patches; 3 frames of 2x2
    wide = 2 if family in tiny.packed.GLM else 3
    assert visit.before == (8,) * wide + (4, 4, 4)
    assert visit.shapes == ((2, 4),) * wide + ((2, 2), (2, 2), (2, 2))
