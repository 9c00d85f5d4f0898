"""``generate()`` in full: beams, several sequences, chunks, later turns, precomputed embeddings, cropping."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers
import transformers.generation.utils
from calls import HANDS_OVER_FEATURES, ROWS, chunks, close, generate, held, modern, video_rows
from plans import PLANS

import foveate
from foveate.errors import InputError

FEW = pytest.mark.parametrize("plan", ["stride", "cascade", "tome", "divprune", "renumber", "native", "vtw"])


def test_beams_follow_the_scores(family: str) -> None:
    """The score that beam search reports is that of the sequence in one full forward."""
    if family in tiny.GROUPED and not HANDS_OVER_FEATURES:
        pytest.skip("this transformers repeats tiles or patches, not images")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    with torch.no_grad(), foveate.compress(model, foveate.Stride(ratio=0.5, layers=(0, 3))):
        out: Any = generate(
            model, batch, num_beams=4, output_scores=True, return_dict_in_generate=True, length_penalty=0.0
        )
        logits = model(**tiny.longer(family, batch, out.sequences)).logits[0, -5:-1].log_softmax(-1)
    close(logits.gather(1, out.sequences[0, -4:, None]).sum(), out.sequences_scores[0])


@modern  # older ones repeat images, not groups of images
@FEW
def test_several_sequences_of_one_prompt(family: str, plan: str) -> None:
    # Stock GLM repeats the images of a row one by one, not as a group.
    rows = [[3, (8, 8), 5], [6]] if family in tiny.packed.GLM else ROWS[family]
    model, batch = tiny.model(family), tiny.inputs(family, rows)
    with torch.no_grad(), foveate.compress(model, PLANS[plan]) as handle:
        one = generate(model, batch)
        tokens = handle.report().layer_tokens
        many = model.generate(
            **batch,
            max_new_tokens=4,
            do_sample=True,
            top_k=1,
            num_return_sequences=3,
            bad_words_ids=[[i] for i in range(9)],
        )
        assert handle.report().layer_tokens == tokens
    assert torch.equal(many.view(len(one), 3, -1), one[:, None].expand(-1, 3, -1))


@chunks
@pytest.mark.parametrize("chunk", [5, 64])  # of 11 the contract knows
@pytest.mark.parametrize("plan", ["vtw+stride", "tome", "visionzip", "vtw", "downsample", "renumber"])
def test_chunked_prefill(family: str, plan: str, chunk: int) -> None:
    """Whatever is decided from a token alone, or before the language model, is the same in chunks."""
    if tiny.looks_ahead(family):
        pytest.skip("a chunk does not see the rest of an image or prefix in stock code; see test_both_ways")
    if family in tiny.tiles.OVIS:
        pytest.skip("stock code loses its indicators in chunks")
    special = {
        "vtw+stride": foveate.VTW(layer=3) + foveate.Stride(keep=1.0),
        "renumber": foveate.VTW(layer=2, positions="renumber"),
    }
    method = special.get(plan) or PLANS[plan]
    refused = plan == "renumber" and family in (*tiny.PACKED, *tiny.cpm.FAMILIES) and chunk < 64
    model, rows = tiny.model(family), ROWS[family]
    batch = tiny.inputs(family, rows)
    options = dict(output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), foveate.compress(model, method):
        whole: Any = generate(model, batch, **options)
        if refused:
            with pytest.raises(InputError, match="chunked prefill cuts"):
                generate(model, batch, prefill_chunk_size=chunk, **options)
            return
        cut: Any = generate(model, batch, prefill_chunk_size=chunk, **options)
    for a, b in zip(whole.logits, cut.logits, strict=True):
        close(a, b)


@chunks
@pytest.mark.parametrize("chunk", [5, 11])
@pytest.mark.parametrize("method", [foveate.Random(ratio=0.3, layer=1), foveate.Stride(layers=(0, 2, 4))], ids=str)
def test_chunked_budgets_are_exact(family: str, method: foveate.Method, chunk: int) -> None:
    if family in tiny.tiles.OVIS:
        pytest.skip("stock code loses its indicators in chunks")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    with torch.no_grad(), foveate.compress(model, method):
        whole: Any = generate(model, batch, return_dict_in_generate=True)
        cut: Any = generate(model, batch, prefill_chunk_size=chunk, return_dict_in_generate=True)
    # A chunk of which nothing is left still leaves one entry of padding: what counts is what attention may see. (Of that, a
    # sliding entry has some more or less beyond its window.)
    for layers in zip(tiny.entries(cut.past_key_values), tiny.entries(whole.past_key_values), strict=True):
        assert layers[0].is_sliding or len({held(entry) for entry in layers}) == 1


@chunks
@pytest.mark.parametrize("chunk", [5, 11])
def test_a_video_in_chunks_keeps_what_the_whole_would(chunk: int) -> None:
    """Three frames of eight tokens, some in two chunks, some in one with others: 24 are rounded, over all cuts."""
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[3, (3, 4, 8), 5]])
    method = foveate.SPU(schedule=((0, 0.55), (2, 0.3), (4, 0.02)))
    with torch.no_grad(), foveate.compress(model, method):
        whole: Any = generate(model, batch, return_dict_in_generate=True)
        cut: Any = generate(model, batch, prefill_chunk_size=chunk, return_dict_in_generate=True)
    kept = [held(entry) for entry in tiny.entries(whole.past_key_values)]
    assert kept == [held(entry) for entry in tiny.entries(cut.past_key_values)]
    assert [n - kept[4] for n in kept[::2]] == [13 - 1, 7 - 1, 0]  # 13.2, 7.2, and one as 0.48 would be none


@FEW
def test_prompt_lookup_decoding(family: str, plan: str) -> None:
    """Assisted decoding brings several tokens at once and crops the cache when it guessed wrong."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    if family in tiny.RECURRENT:
        with foveate.compress(model, PLANS[plan]), pytest.raises(ValueError, match="stateful"):  # says stock code
            model.generate(**batch, prompt_lookup_num_tokens=3, max_new_tokens=8)
        return
    options: Any = dict(max_new_tokens=8, do_sample=False, bad_words_ids=[[i] for i in range(9)])
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        plain = model.generate(**batch, **options)
        assisted = model.generate(**batch, **options, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, assisted)


def test_cropping_into_the_reduced_part(family: str) -> None:
    if family in tiny.RECURRENT:
        pytest.skip("stock code cannot crop a state")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:2])
    cache: Any = transformers.DynamicCache(config=model.config)
    cache.activate_past_recording()  # what has slid out of a window could not come back otherwise
    if family == "paligemma":
        batch["token_type_ids"][:, -2:] = 1  # a suffix: the prefix would see it
    with torch.no_grad(), foveate.compress(model, foveate.Stride(ratio=0.5, layers=(0, 3))):
        model(**batch, past_key_values=cache)
        length = batch["input_ids"].shape[1]
        cache.crop(-2)
        assert cache.get_seq_length() == length - 2
        tail = dict(input_ids=batch["input_ids"][:, -2:], attention_mask=batch["attention_mask"])
        if family in tiny.PACKED:
            ids = tiny.positions(model, batch)
            tail["position_ids"] = ids[..., -2:]
        again = model(**tail, past_key_values=cache).logits
        close(again[:, -1], model(**batch).logits[:, -1])
        cache.crop(-(length - 4))  # into the image of every row
        assert cache.get_seq_length() == 4
        cache.reset()
        assert cache.get_seq_length() == 0


def test_inputs_embeds(family: str) -> None:
    if family in tiny.PACKED:
        pytest.skip("stock Qwen needs input_ids to number an image")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad(), foveate.compress(model, foveate.Stride(keep=0.5)) as handle:
        expected = model(**batch).logits[:, -1]
        tokens = handle.report().layer_tokens
        given = {**{k: v for k, v in batch.items() if k != "input_ids"}, "inputs_embeds": embeds}
        close(model(**given).logits[:, -1], expected)
        assert handle.report().layer_tokens == tokens
        if tiny.looks_ahead(family):
            return  # stock generate() takes none there
        generated: Any = model.generate(
            **given, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        close(generated.logits[0], expected)


@modern
@pytest.mark.parametrize("plan", ["stride", "tome", "fastv"])
def test_features_computed_beforehand(family: str, plan: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    names = {"pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes", "batch_num_images"}
    names |= {"image_position_ids", "target_sizes"}
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        expected = model(**batch).logits[:, -1]
        features = model.get_image_features(**{k: v for k, v in batch.items() if k in names}, return_dict=True)
        rest = {k: v for k, v in batch.items() if k != "pixel_values"}
        close(model(**rest, mm_encoder_outputs={"image": features}).logits[:, -1], expected)


@modern
@pytest.mark.parametrize("plan", ["stride", "cascade", "tome", "divprune", "visionzip", "vtw", "renumber"])
def test_two_turns_of_generate(family: str, plan: str) -> None:
    """A continued chat holds as much as the whole chat at once; in LLaVA, whose positions allow it, it says the same."""
    if family == "paligemma":
        pytest.skip("a prefix sees all of itself: two of them are not one; see test_both_ways")
    model, image = tiny.model(family), (8, 8) if family in tiny.PACKED else "image"
    both = tiny.inputs(family, [[3, image, 5, image, 4]])
    visual = both["input_ids"][0] == tiny.IMAGE_TOKEN[family]
    cut = int(visual.nonzero()[int(visual.sum()) // 2 - 1]) + 3
    options: Any = dict(output_logits=True, return_dict_in_generate=True)

    def batch(ids: torch.Tensor, images: slice, length: int) -> dict[str, torch.Tensor]:
        made = dict(input_ids=ids, attention_mask=torch.ones(1, length, dtype=torch.long))
        made |= tiny.of_images(family, both, images)
        if family in tiny.PACKED and "mm_token_type_ids" in both:
            made["mm_token_type_ids"] = (ids == tiny.IMAGE_TOKEN[family]).long()
        if "token_type_ids" in both:
            made["token_type_ids"] = (ids == tiny.IMAGE_TOKEN[family]).long()
        return made

    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        first: Any = generate(model, batch(both["input_ids"][:, :cut], slice(0, 1), cut), **options)
        cache = first.past_key_values
        chat = torch.cat([first.sequences, both["input_ids"][:, cut:]], dim=1)
        new = chat[:, cache.get_seq_length() :] if family in tiny.PACKED else chat  # what stock takes here
        second: Any = generate(model, batch(new, slice(1, 2), chat.shape[1]), past_key_values=cache, **options)
        whole: Any = generate(model, batch(chat, slice(0, 2), chat.shape[1]), **options)
    lengths = [[entry.keys.shape[-2] for entry in tiny.entries(out.past_key_values)] for out in (second, whole)]
    assert lengths[0] == lengths[1]
    if family not in tiny.PACKED:
        for a, b in zip(second.logits, whole.logits, strict=True):
            close(a, b)


@chunks
@pytest.mark.parametrize("chunk", [5, 11])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_an_image_and_a_video_in_chunks(family: str, chunk: int) -> None:
    """A chunk brings one of the two, or parts of both."""
    model, batch = tiny.model(family), tiny.inputs(family, video_rows(family), only=1)
    assert {"pixel_values", "pixel_values_videos"} <= batch.keys()
    for method in (foveate.VTW(layer=2), foveate.VisionZip(keep=0.5)):
        with torch.no_grad(), foveate.compress(model, method):
            options = dict(output_logits=True, return_dict_in_generate=True)
            whole: Any = generate(model, batch, **options)
            cut: Any = generate(model, batch, prefill_chunk_size=chunk, **options)
        for a, b in zip(whole.logits, cut.logits, strict=True):
            close(a, b)
