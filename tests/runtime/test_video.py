"""Videos as the families' own video processors make them: sampled frames, timestamps, placeholders and all."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from calls import close
from plans import PLANS
from transformers.utils.import_utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

import foveate

pytestmark = pytest.mark.skipif(not is_torchvision_available(), reason="video processors need torchvision")

TEXTS = [
    "word1 word2 <|vision_start|> <|video_pad|> <|vision_end|> word3",
    "word4 <|vision_start|> <|video_pad|> <|vision_end|> word5 word6 word7",
]
SIZES = [(6, 32, 48), (4, 16, 32)]  # frames, pixels


def process(family: str, rows: list[int]) -> dict[str, Any]:
    """A batch of ``rows`` of `TEXTS`, each with its video."""
    generator = torch.Generator().manual_seed(0)
    videos = [torch.randint(255, (t, 3, h, w), dtype=torch.uint8, generator=generator) for t, h, w in SIZES]
    metadata = [VideoMetadata(total_num_frames=t, fps=2.0, frames_indices=list(range(t))) for t, _, _ in SIZES]
    batch = tiny.processor(family)(
        text=[TEXTS[i] for i in rows],
        videos=[videos[i] for i in rows],
        video_metadata=[metadata[i] for i in rows],
        do_sample_frames=False,
        size={"shortest_edge": 64, "longest_edge": 10**6},
        padding=True,
        return_tensors="pt",
    )
    if family in tiny.packed.GLM:  # its processor tells videos by words that the tiny vocabulary has not
        batch["mm_token_type_ids"] *= 2
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("plan", ["stride", "tome+fastv", "visionzip", "ipcv", "native", "renumber", "oim", "adsc"])
@pytest.mark.parametrize("family", tiny.PACKED)
def test_processed_videos(family: str, plan: str) -> None:
    model, batch = tiny.model(family), process(family, [0, 1])
    assert batch["video_grid_thw"].tolist() == [[3, 8, 12], [2, 4, 8]]
    with torch.no_grad(), foveate.compress(model, PLANS[plan]) as handle:
        together = model(**batch).logits
        assert handle.report().visual_tokens == 3 * 24 + 2 * 8
        assert len(handle.report().visits[0].before) == 5
        for i in (0, 1):
            alone = process(family, [i])
            text = ~tiny.visual_mask(family, alone)[0]
            row = together[i][batch["attention_mask"][i].bool()]
            close(row[text], model(**alone).logits[0][text])
