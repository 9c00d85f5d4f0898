"""Invariants 2, 3, 4, 8, 10, 11, 12: a batch is its rows, a cached step is a full forward, lengths are the schedule."""

from __future__ import annotations

import pytest
import tiny
import torch
from calls import ROWS, video_rows

import foveate


def test_cache_lengths_are_the_schedule(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    visual = int(tiny.visual_mask(family, batch).sum())
    text = batch["input_ids"].shape[1] - visual
    half, quarter = (visual + 1) // 2, ((visual + 1) // 2 + 1) // 2
    with torch.no_grad(), foveate.compress(model, foveate.Stride(ratio=0.5, layers=(2, 4))) as handle:
        cache = model(**batch).past_key_values
        report = handle.report()
    expected = [text + n for n in (visual, visual, half, half, quarter, quarter)]
    held = [min(n, tiny.window(family, i) or n) for i, n in enumerate(expected)]
    held, entries = tiny.of_attention(family, held), tiny.entries(cache)
    assert [entry.keys.shape[-2] for entry in entries] == held
    assert [entry.get_seq_length() for entry in entries] == [text + visual] * len(held)
    assert list(report.kv_lengths) == held
    assert list(report.layer_tokens) == expected
    assert report.kv_bytes == sum(entry.keys.nbytes + entry.values.nbytes for entry in entries)
    assert [sum(visit.after) for visit in report.visits] == [half, quarter]


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
