"""The fast forward pass equals the stock one, for both architectures and several shapes of images."""

from __future__ import annotations

import pytest
import torch

from foveate_reference.fast import FastForward, Layout
from foveate_reference.model import (
    ARCHITECTURES,
    IMAGE_PAD,
    SPECIAL,
    TOKEN_ID,
    VISION_END,
    VISION_START,
    make_config,
    make_model,
    make_processor,
    tiles,
)

QUESTIONS = 3
SHAPES = {"one": (2, 1, 160, 160, 3), "pair": (2, 2, 160, 160, 3), "large": (2, 1, 320, 320, 3)}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    """An untrained model whose outputs are far from zero."""
    model = make_model(make_config(request.param, layers=3, tower_depth=2), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def fast(model):
    return FastForward(model)


def batch(shape, questions=QUESTIONS):
    """Random images, questions and answers."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    first, end = len(SPECIAL), len(TOKEN_ID)
    asked = torch.randint(first, end, (shape[0], questions, 4), generator=generator)
    return images, asked, torch.randint(first, end, (shape[0],), generator=generator)


def stock(model, images, text):
    """Logits (B, vocabulary) of the stock forward after images (B, n, H, W, 3) and token ids (B, length)."""
    architecture = model.config.model_type
    processor, found = make_processor(architecture), []
    for pictures, ids in zip(images.numpy(), text, strict=True):
        shown = tiles(pictures) if architecture == "llava" else list(pictures)
        prompt = f"{VISION_START}{IMAGE_PAD}{VISION_END}" * len(shown)
        inputs = processor(text=[prompt], images=shown, return_tensors="pt")
        inputs["input_ids"] = torch.cat((inputs["input_ids"], ids[None]), 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(ids)))
        found.append(model(**inputs).logits[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fast_forward_equals_the_stock_forward(model, fast, shape):
    images, questions, answers = batch(shape)
    with torch.no_grad():
        visual = fast.see(images)
        logits, ends, _ = fast.read(visual, questions, answers, fast.layout(shape))
        assert logits.std() > 0.1
        for number in range(QUESTIONS):
            expected = stock(model, images, questions[:, number])
            assert torch.allclose(logits[:, number], expected, atol=1e-4)
        answered = torch.cat((questions[:, 0], answers[:, None]), 1)
        assert torch.allclose(ends, stock(model, images, answered), atol=1e-4)


def test_the_summary_is_the_cls_token_of_the_layer_that_is_used(model, fast):
    images = batch(SHAPES["pair"])[0]
    with torch.no_grad():
        visual, summary = fast.look(images)
        assert torch.equal(visual, fast.see(images))
        if model.config.model_type != "llava":
            assert summary is None
            return
        shown = [tile for pictures in images.numpy() for tile in tiles(pictures)]
        pixels = make_processor("llava").image_processor(shown, return_tensors="pt")["pixel_values"]
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        expected = states[model.config.vision_feature_layer][:, 0]
        assert torch.allclose(summary.flatten(0, 1), expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_masks_equal_removal(fast, shape):
    images, questions, answers = batch(shape)
    layout = fast.layout(shape)
    layers = len(fast.decoder.layers)
    kept = torch.arange(0, layout.visual, 3)
    dropped = torch.ones(layout.visual, dtype=torch.bool)
    dropped[kept] = False

    def logits(visual, masks=None):
        return fast.read(visual, questions, answers, layout, masks=masks)[0]

    with torch.no_grad():
        visual = fast.see(images)
        other, blank = visual.clone(), torch.full_like(visual, 7.0)
        other[:, dropped] = 7.0
        full = logits(visual)
        assert torch.equal(logits(visual, fast.leave_at(layers, layout, QUESTIONS)), full)
        assert torch.equal(logits(visual, fast.keep(torch.arange(layout.visual), layout, QUESTIONS)), full)
        sparse = fast.keep(kept, layout, QUESTIONS)
        assert torch.allclose(logits(visual, sparse), logits(other, sparse), atol=1e-5)
        assert not torch.allclose(logits(visual, sparse), full, atol=1e-3)
        never = fast.leave_at(0, layout, QUESTIONS)
        assert torch.allclose(logits(visual, never), logits(blank, never), atol=1e-5)
        late = fast.leave_at(layers - 1, layout, QUESTIONS)
        assert not torch.allclose(logits(visual, late), logits(blank, late), atol=1e-3)


def test_keep_equals_the_stock_decoder_on_fewer_tokens(model, fast):
    """Only what is kept enters the decoder, at its own positions."""
    images, questions, answers = batch(SHAPES["pair"])
    layout = fast.layout(images.shape)
    kept = torch.arange(0, layout.visual, 3)
    framed = torch.ones(layout.text, dtype=torch.bool)
    framed[layout.places] = False
    framed[layout.places[kept]] = True
    with torch.no_grad():
        visual = fast.see(images)
        masks = fast.keep(kept, layout, QUESTIONS)
        logits = fast.read(visual, questions, answers, layout, masks=masks)[0]
        ids = torch.tensor(([TOKEN_ID[VISION_START]] + [0] * 100 + [TOKEN_ID[VISION_END]]) * 2)
        embed = fast.decoder.embed_tokens
        start = embed(ids).repeat(len(images), 1, 1)
        start[:, layout.places] = visual
        inputs = torch.cat((start[:, framed], embed(questions[:, 1])), 1)
        positions = torch.tensor(fast.positions(layout, 1)).T[..., :-1]
        positions = torch.cat((positions[:, : layout.text][:, framed], positions[:, layout.text :]), 1)
        positions = positions[:, None].repeat(1, len(images), 1)
        if model.config.model_type == "llava":
            positions = positions[0]
        out = fast.decoder(inputs_embeds=inputs, position_ids=positions).last_hidden_state[:, -1]
    assert torch.allclose(out @ embed.weight.T, logits[:, 1], atol=1e-4)


def test_number_of_questions_may_change(fast):
    images, questions, answers = batch(SHAPES["one"], 5)
    layout = fast.layout(images.shape)
    with torch.no_grad():
        visual = fast.see(images)
        many = fast.read(visual, questions, answers, layout)[0]
        few = fast.read(visual, questions[:, :2], answers, layout)[0]
    assert torch.allclose(many[:, :2], few, atol=1e-5)


def test_layout_and_arrange(model, fast):
    llava = model.config.model_type == "llava"
    assert fast.layout(SHAPES["one"]) == Layout(1, 10, 10)
    assert fast.layout(SHAPES["pair"]) == Layout(2, 10, 10)
    assert fast.layout(SHAPES["large"]) == (Layout(4, 10, 10) if llava else Layout(1, 20, 20))
    # Each cell has a shade of its own: a visual token must come from the cells that `arrange` puts there.
    cells = torch.arange(400).view(1, 1, 20, 20)
    image = torch.zeros(1, 1, 320, 320, 3, dtype=torch.uint8)
    order = fast.arrange(cells)
    assert order.shape == (1, 400)
    assert sorted(order[0].tolist()) == list(range(400))
    for cell in (0, 25, 190, 210, 399):
        changed = image.clone()
        row, column = divmod(cell, 20)
        changed[0, 0, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
        with torch.no_grad():
            change = (fast.see(changed) - fast.see(image)).norm(dim=-1)[0]
        assert order[0, change.argmax()] == cell
    extra = torch.rand(3, 5, 2, 20, 20)
    assert fast.arrange(extra).shape == (3, 5, 800)
    assert torch.equal(fast.arrange(extra)[1, 2, 400:], extra[1, 2, 1].flatten()[order[0]])


def test_pointer_loss(fast):
    images, questions, answers = batch(SHAPES["pair"])
    layout = fast.layout(images.shape)
    everywhere = torch.ones(2, QUESTIONS, 2, layout.visual, dtype=torch.bool)
    some = everywhere.clone()
    some[..., layout.visual // 4 :] = False
    last = some.clone()
    last[:, 1:] = False
    with torch.no_grad():
        visual = fast.see(images)

        def loss(pointers):
            return fast.read(visual, questions, answers, layout, pointers=pointers)[2]

        assert loss(None) == 0
        assert loss({0: torch.zeros_like(some)}) == 0
        assert abs(loss({0: everywhere, 2: everywhere})) < 1e-5
        assert 0.5 < loss({0: some}) < 3  # untrained: a quarter of the attention
        assert loss({0: last}) != loss({0: some})
        for pointers in ({0: some}, {2: last}):
            read = fast.read(visual, questions, answers, layout, pointers=pointers)[0]
            assert torch.equal(read, fast.read(visual, questions, answers, layout)[0])


def test_gradients_flow_to_all_that_is_used(model, fast):
    images, questions, answers = batch(SHAPES["one"])
    model.zero_grad()
    logits, ends, _ = fast.read(fast.see(images), questions, answers, fast.layout(images.shape))
    (logits.square().mean() + ends.square().mean()).backward()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    model.zero_grad()
    # LLaVA reads what enters the last vision block.
    assert all("encoder.layers.2." in name or "vision_tower.post_layernorm" in name for name in missing), missing
    assert (not missing) == (model.config.model_type != "llava")
