"""Sound in the prompt: placeholders and features of its own, which stay where they are, beside images and between frames."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from calls import close, generate
from plans import PLANS
from torch import Tensor

import foveate

FRAMES = {"qwen2_5_omni_thinker": 16, "qwen3_omni_moe_thinker": 32}  # of a sound
TOKENS = 4  # that the language model sees of it
ROWS: list[list[tiny.Item]] = [[8, (8, 8), 5], [9, (4, 12), 4, (8, 4), 7], [12]]
pytestmark = pytest.mark.parametrize("family", tiny.packed.OMNI)
FEW = pytest.mark.parametrize(
    "plan", ["stride", "fastv", "tome", "visionzip", "renumber", "native", "ipcv", "divprune"]
)


def heard(family: str, rows: int) -> dict[str, Tensor]:
    """A sound for each row."""
    shape = (tiny.packed.MELS, FRAMES[family])
    features = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(rows)]
    mask = torch.ones(rows, FRAMES[family], dtype=torch.long)
    return {"input_features": torch.stack(features), "feature_attention_mask": mask}


def beside(family: str, only: int | None = None, side: str = "left") -> dict[str, Tensor]:
    """A batch whose rows begin with a sound."""
    batch = tiny.inputs(family, ROWS, only=only, padding_side=side)
    batch |= {name: value if only is None else value[only : only + 1] for name, value in heard(family, 3).items()}
    for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        begin = int(real.nonzero()[0])
        ids[begin : begin + TOKENS + 2] = tiny.packed.AUDIO_TOKEN
        ids[begin], ids[begin + TOKENS + 1] = tiny.packed.AUDIO_START, tiny.TOKEN_ID["<unk>"]
    return batch


@pytest.mark.parametrize("plan", [None, *PLANS])
def test_nothing_or_only_pixels_are_dropped(family: str, impl: str, plan: str | None) -> None:
    """Bit-equal where nothing goes; where something does, it is not the sound."""
    model, batch = tiny.model(family, impl), beside(family)
    if plan is None:
        with torch.no_grad():
            logits, ids = model(**batch).logits, generate(model, batch)
            with foveate.compress(model, foveate.Stride(keep=1.0)):
                assert torch.equal(model(**batch).logits, logits)
                assert torch.equal(generate(model, batch), ids)
        return
    visual = tiny.visual_mask(family, batch)
    assert not bool((visual & (batch["input_ids"] == tiny.packed.AUDIO_TOKEN)).any())
    with torch.no_grad(), foveate.compress(model, PLANS[plan]) as handle:
        model(**batch)
        report = handle.report()
    assert report.visual_tokens == int(visual.sum()) == 16 + 12 + 8
    text = [int(n) for n in (batch["attention_mask"] - visual.int()).sum(1)]
    assert min(report.layer_tokens) >= max(text)


@FEW
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_with_sound_is_its_rows(family: str, plan: str, side: str) -> None:
    model, batch = tiny.model(family), beside(family, side=side)
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together = model(**batch).logits
        for i in range(len(ROWS)):
            alone = beside(family, only=i)
            text = ~tiny.visual_mask(family, alone)[0]
            close(together[i][batch["attention_mask"][i].bool()][text], model(**alone).logits[0][text])


@FEW
def test_generation_with_sound(family: str, plan: str) -> None:
    model = tiny.model(family)
    options: Any = dict(output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together: Any = generate(model, beside(family), **options)
        for i in range(len(ROWS)):
            alone: Any = generate(model, beside(family, only=i), **options)
            for step in range(4):
                close(together.logits[step][i], alone.logits[step][0])


def between(family: str, only: int | None = None) -> dict[str, Any]:
    """Videos whose sound stands between their frames: after two, which are a chunk of two seconds; or after one, by time."""
    videos: list[list[tiny.Item]] = [[3, (3, 4, 8), 5], [6, (3, 4, 4), 2]]
    batch: dict[str, Any] = tiny.inputs(family, [[*row[:2], TOKENS + 2, row[2]] for row in videos], only=only)
    batch |= {name: value[:2] if only is None else value[only : only + 1] for name, value in heard(family, 2).items()}
    batch |= {"use_audio_in_video": True}
    for ids in batch["input_ids"]:
        frames = (ids == tiny.VIDEO_TOKEN).nonzero().flatten()
        begin, n = int(frames[0]), len(frames)
        sound, end = (
            torch.full((TOKENS,), tiny.packed.AUDIO_TOKEN),
            ids[begin + n],
        )  # the video ends: then come words to replace
        before = (2 if family == "qwen2_5_omni_thinker" else 1) * n // 3
        first, rest = torch.full((before,), tiny.VIDEO_TOKEN), torch.full((n - before,), tiny.VIDEO_TOKEN)
        opening, closing = torch.tensor([tiny.packed.AUDIO_START]), torch.tensor([tiny.TOKEN_ID["<unk>"], end])
        ids[begin : begin + n + TOKENS + 3] = torch.cat([opening, first, sound, rest, closing])
    return batch


@FEW
def test_sound_between_frames(family: str, impl: str, plan: str) -> None:
    model, batch = tiny.model(family, impl), between(family)
    with torch.no_grad():
        stock = model(**batch).logits
        with foveate.compress(model, foveate.Stride(keep=1.0)):
            assert torch.equal(model(**batch).logits, stock)
        with foveate.compress(model, PLANS[plan]) as handle:
            together = model(**batch).logits
            report = handle.report()
            assert report.visual_tokens == 3 * 8 + 3 * 4
            assert len(report.visits[0].before) == 6, "every frame is a span"
            for i in range(2):
                alone = between(family, only=i)
                text = ~tiny.visual_mask(family, alone)[0]
                close(together[i][batch["attention_mask"][i].bool()][text], model(**alone).logits[0][text])


def test_a_dropped_frame_is_masked(family: str, impl: str) -> None:
    """The stock model with the keys of the dropped tokens masked says the same, sound and all."""
    model, batch = tiny.model(family, impl, fresh=True), between(family)
    with torch.no_grad(), foveate.compress(model, foveate.Random(layer=2, ratio=0.4)) as handle:
        reduced = model(**batch).logits
        visit = handle.report().visits[0]
    visual = tiny.visual_mask(family, batch)
    dropped = visual.clone()
    dropped[visual] = torch.tensor(
        [i not in kept for kept, (h, w) in zip(visit.kept, visit.shapes, strict=True) for i in range(h * w)]
    )

    def hide(module: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"]
        lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask.masked_fill(dropped[:, None, None], lowest)}

    for block in tiny.lm(model).layers[2:]:
        block.register_forward_pre_hook(hide, with_kwargs=True)
    with torch.no_grad():
        masked = model(**batch).logits
    text = ~visual & batch["attention_mask"].bool()
    close(reduced[text], masked[text])
