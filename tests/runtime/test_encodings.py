"""Features between the tower and the prompt: what a hole is, what callers get, and what they may bring back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from calls import close, generate, modern
from torch import Tensor
from transformers import PreTrainedModel

import foveate
from foveate.errors import InputError
from foveate.runtime.marks import holes, mark

STRUCTURES = ("llava", "qwen2_5_vl", "llava_next", "internvl", "gemma3")
MERGING = [foveate.ToMe(), foveate.ToMe(keep=1.0), foveate.VisionZip(keep=0.5), foveate.Downsample(), foveate.LUVC()]
NOT_PIXELS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
families = pytest.mark.parametrize("family", STRUCTURES)


def of_images(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in NOT_PIXELS}


def of_text(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "pixel_values"}


def embeds_of(model: PreTrainedModel, family: str, batch: dict[str, Tensor], features: Any) -> Tensor:
    """Features put into the prompt by hand."""
    table: Any = model.get_input_embeddings()
    embeds: Tensor = table(batch["input_ids"])
    embeds[batch["input_ids"] == tiny.IMAGE_TOKEN[family]] = torch.cat([part.flatten(0, -2) for part in features])
    return embeds


def test_a_mark_is_no_other_row() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rows = torch.randn(700, 16).to(dtype)
        rows[3], rows[4, 0], rows[5] = torch.nan, torch.nan, torch.inf
        hole = torch.arange(700) % 3 == 0
        marked = mark(rows, hole, encoding=70_000, start=300)
        assert torch.equal(holes(marked), hole)
        assert not holes(rows).any()
        assert torch.equal(marked[~hole].nan_to_num(), rows[~hole].nan_to_num())
        assert len(marked[hole].nan_to_num().unique(dim=0)) == int(hole.sum())


@families
@pytest.mark.parametrize("method", MERGING, ids=repr)
def test_what_the_tower_spoils_is_no_hole(family: str, method: foveate.Method) -> None:
    """One NaN among the pixels of the first sample: stock code answers NaN there, and nowhere else."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5], [2, "image", 4]])
    batch["pixel_values"] = batch["pixel_values"].clone()
    batch["pixel_values"].view(-1)[0] = torch.nan
    with torch.no_grad():
        stock = model(**batch).logits[:, -1].isnan()
        assert stock[0].all()
        assert not stock[1].any()
        with foveate.compress(model, method):
            assert torch.equal(model(**batch).logits[:, -1].isnan(), stock)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_very_first_image_may_spoil_the_tower(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    batch["pixel_values"] = batch["pixel_values"] * torch.nan
    for method in (foveate.ToMe(), foveate.VisionZip(keep=0.5), foveate.Downsample()):
        with torch.no_grad(), foveate.compress(model, method):
            assert model(**batch).logits[:, -1].isnan().all()


@families
@pytest.mark.parametrize("method", MERGING, ids=repr)
def test_a_caller_gets_what_is_left(family: str, method: foveate.Method) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5], [2, "image", 4]])
    with torch.no_grad(), foveate.compress(model, method) as handle:
        with pytest.raises(InputError, match="get_image_features"):
            _ = handle.encoded
        marked = torch.cat([part.flatten(0, -2) for part in tiny.marked(model, batch).pooler_output])
        found = torch.cat([part.flatten(0, -2) for part in model.get_image_features(**of_images(batch)).pooler_output])
        left = handle.encoded
        model(**batch)
        visits = [visit for visit in handle.report().visits if not visit.site.startswith("decoder")]
    assert found.isfinite().all()
    close(found, marked[~holes(marked)])
    if family == "llava_next":  # whose tiles are other spans than its views, and whose newlines stay
        assert 0 < len(left) < len(found)
    else:
        assert left.counts == visits[-1].after
        assert len(left) == len(found)


@modern
@families
@pytest.mark.parametrize("method", [foveate.VisionZip(keep=0.5), foveate.FastV(), foveate.LUVC()], ids=repr)
def test_ten_images_that_were_encoded_before(family: str, method: foveate.Method) -> None:
    """Features of ten images are kept, and brought back in another order, with another question, under beams."""
    model = tiny.model(family)
    sizes: list[tiny.Item] = (
        ["image"] * 10 if family in tiny.ONE_SIZE else [(4, 12), (12, 4), (8, 8), (4, 8), (12, 8)] * 2
    )
    names = ["pixel_values", "image_grid_thw", "image_sizes"]
    batches = [tiny.inputs(family, [[3, size]], seed=i) for i, size in enumerate(sizes)]
    with torch.no_grad(), foveate.compress(model, method) as handle:
        kept = [model.get_image_features(**of_images(batch)) for batch in batches]
        order = [7, 2, 9, 0, 4]
        for i in order:
            given = {**of_text(batches[i]), "mm_encoder_outputs": {"image": copy.deepcopy(kept[i])}}
            expected = generate(model, batches[i], num_beams=2)
            tokens = handle.report().layer_tokens
            assert torch.equal(generate(model, given, num_beams=2), expected)
            assert handle.report().layer_tokens == tokens
        # Several in one prompt.
        both = tiny.inputs(family, [[3, sizes[7], 2, sizes[2]]])
        for name in names:
            if name in both:
                both[name] = torch.cat([batches[i][name] for i in (7, 2)])
        parts = [part for i in (7, 2) for part in kept[i].pooler_output]
        output = copy.copy(kept[0])
        output.pooler_output = torch.stack(parts) if isinstance(kept[0].pooler_output, Tensor) else parts
        given = {**of_text(both), "mm_encoder_outputs": {"image": output}}
        close(model(**given).logits[:, -1], model(**both).logits[:, -1])


@modern
def test_geometry_comes_with_features() -> None:
    """Twelve tokens of a wide image are not those of a high one, whatever was encoded last."""
    family = "qwen2_5_vl"
    model = tiny.model(family)
    wide, high = (tiny.inputs(family, [[3, size, 4]]) for size in ((4, 12), (12, 4)))
    with torch.no_grad(), foveate.compress(model, foveate.ADSC(pattern="2d", layers=(1,), keep=0.5)) as handle:
        expected = model(**wide).logits[:, -1]
        kept = model.get_image_features(**of_images(wide))
        model.get_image_features(**of_images(high))
        given = {**of_text(wide), "mm_encoder_outputs": {"image": kept}}
        close(model(**given).logits[:, -1], expected)
        assert handle.report().visits[0].shapes == ((2, 6),)
        with pytest.raises(
            InputError, match="image_grid_thw says 1x6x2, but the features with it are of images of 1x2x6"
        ):
            model(**{**given, "image_grid_thw": high["image_grid_thw"]})
    stock = model.get_image_features(**of_images(wide))  # not under a handle: the grid says what they are
    with torch.no_grad(), foveate.compress(model, foveate.ADSC(pattern="2d", layers=(1,), keep=0.5)) as handle:
        given = {**of_text(wide), "mm_encoder_outputs": {"image": stock}}
        close(model(**given).logits[:, -1], expected)
        close(generate(model, given, output_logits=True, return_dict_in_generate=True).logits[0], expected)
        assert handle.report().visits[0].shapes == ((2, 6),)
        with pytest.raises(InputError, match=r"1x2x4.* 8 features, but 12 came"):
            model(**{**given, "image_grid_thw": torch.tensor([[1, 4, 8]])})


def test_features_put_into_a_prompt_by_hand() -> None:
    """As `get_image_features` gave them before the handle, where ids or types say where they are."""
    for family in ("llava", "qwen2_5_vl"):
        model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5], [2, "image", 4]])
        with torch.no_grad():
            embeds = embeds_of(model, family, batch, model.get_image_features(**of_images(batch)).pooler_output)
            ids = {} if family == "qwen2_5_vl" else {"input_ids": batch["input_ids"]}
            given = {name: value for name, value in of_text(batch).items() if name != "input_ids"}
            given |= {"inputs_embeds": embeds, **ids}
            if family == "qwen2_5_vl":
                given["position_ids"] = tiny.positions(model, batch)
            with foveate.compress(model, foveate.FastV(layer=1)) as handle:
                expected = model(**batch).logits[:, -1]
                tokens = handle.report().layer_tokens
                if family == "qwen2_5_vl":
                    close(model(**given).logits[:, -1], expected)
                out: Any = generate(model, given, output_logits=True, return_dict_in_generate=True)
                close(out.logits[0], expected)
                assert handle.report().layer_tokens == tokens
            with (
                foveate.compress(model, foveate.VisionZip()),
                pytest.raises(InputError, match="not encoded under this"),
            ):
                generate(model, given)


def test_features_that_nothing_tells_the_place_of() -> None:
    """Those that were encoded here are found; marks that are none of these are refused; the rest is text, with a warning."""
    family, model = "llava", tiny.model("llava")
    batch = tiny.inputs(family, [[3, "image", 5], [2, "image", 4]])
    for method in (foveate.FastV(layer=1), foveate.VisionZip(keep=0.5)):
        with torch.no_grad(), foveate.compress(model, method):
            expected = model(**batch).logits[:, -1]
            embeds = embeds_of(model, family, batch, tiny.marked(model, batch).pooler_output)
            given = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
            close(model(**given).logits[:, -1], expected)
            out: Any = generate(model, given, output_logits=True, return_dict_in_generate=True)
            close(out.logits[0], expected)
    with torch.no_grad(), foveate.compress(model, method):
        half = embeds[:, : embeds.shape[1] // 2]
        with pytest.raises(InputError, match="nothing says where the image is: give input_ids"):
            model(inputs_embeds=half)
    text = tiny.inputs(family, [[6]])
    with torch.no_grad(), foveate.compress(model, method):
        words: Any = model.get_input_embeddings()(text["input_ids"])
        with pytest.warns(UserWarning, match="takes all of it for text"):
            ours = model(inputs_embeds=words).logits
    with torch.no_grad():
        assert torch.equal(ours, model(inputs_embeds=words).logits)


@modern
def test_features_of_another_models_handle() -> None:
    """An assistant is given the features of the model that it assists: what has left there has left here."""
    model, other = tiny.model("llava"), tiny.model("llava", fresh=True)
    batch = tiny.inputs("llava", [[3, "image", 5]])
    with torch.no_grad(), foveate.compress(model, foveate.VisionZip(keep=0.5)):
        features = model.get_image_features(**of_images(batch))
        given = {**of_text(batch), "mm_encoder_outputs": {"image": features}}
        expected = model(**given).logits[:, -1]
        with foveate.compress(other, foveate.VTW(layer=tiny.LAYERS - 1)) as handle:
            assert other(**given).logits.isfinite().all()
            assert handle.report().visits[0].before == (18,)
        with foveate.compress(other, foveate.ToMe()):
            close(other(**given).logits[:, -1], expected)
        with foveate.compress(other, foveate.IPCV()), pytest.raises(InputError, match="encoded under another handle"):
            other(**given)


@modern
@pytest.mark.parametrize("family", ["mistral3", "qwen2_5_vl"])
def test_blank_images_are_told_apart(family: str) -> None:
    """All rows of blank images are equal in some towers: pieces and grids say which fits."""
    model = tiny.model(family, fresh=True).to(torch.bfloat16)
    first, second = (tiny.inputs(family, [row]) for row in ([3, (8, 12), 2], [3, (4, 12), 2, (12, 4)]))
    for batch in (first, second):
        batch["pixel_values"] = torch.ones_like(batch["pixel_values"])
    with torch.no_grad(), foveate.compress(model, foveate.FastV(layer=1)) as handle:
        expected, shapes = model(**second).logits[:, -1], handle.report().visits[0].shapes
        kept = model.get_image_features(**of_images(second))
        model.get_image_features(**of_images(first))
        given = {**of_text(second), "mm_encoder_outputs": {"image": kept}}
        close(model(**given).logits[:, -1], expected)
        assert handle.report().visits[0].shapes == shapes


@modern
def test_a_kept_video_whose_frames_are_clips() -> None:
    family = "glm4v"
    model, batch = tiny.model(family), tiny.inputs(family, [[3, (4, 4, 8), 5]])
    with torch.no_grad(), foveate.compress(model, foveate.Stride()):
        given = {name: value for name, value in batch.items() if name != "pixel_values_videos"}
        video = {name: value for name, value in batch.items() if "video" in name}
        given["mm_encoder_outputs"] = {"video": model.get_video_features(**video)}
        close(model(**given).logits[:, -1], model(**batch).logits[:, -1])


@modern
def test_features_stay_what_they_were_under_beams() -> None:
    """Stock code repeats them in place."""
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[3, "image", 5]])
    with torch.no_grad(), foveate.compress(model, foveate.FastV(layer=1)):
        kept = model.get_image_features(**of_images(batch))
        given = {**of_text(batch), "mm_encoder_outputs": {"image": kept}}
        first, second = (generate(model, given, num_beams=2) for _ in range(2))
        assert torch.equal(first, second)
        assert len(kept.pooler_output) == 1
        kept.pooler_output = kept.pooler_output[0]
        with pytest.raises(TypeError, match="tuple"):  # as stock code says it
            model(**given)


def test_another_layers_features() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    with torch.no_grad(), foveate.compress(model, foveate.FastV(layer=1)):
        model(**batch, vision_feature_layer=-3)
    with torch.no_grad(), foveate.compress(model, foveate.ToMe()):
        with pytest.raises(InputError, match="vision_feature_layer=-3 is not the config's, -2"):
            model(**batch, vision_feature_layer=-3)
        model(**batch)
