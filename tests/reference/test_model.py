"""The reference models: sizes, tokenizer, processors, and folders that the stock classes load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils.import_utils import is_torchvision_available

from foveate_reference.model import (
    ARCHITECTURES,
    IMAGE_PAD,
    TOKEN_ID,
    export,
    load_processor,
    make_config,
    make_model,
    make_processor,
    make_tokenizer,
    tiles,
)
from foveate_reference.vocabulary import ANSWERS, WORDS

QUESTION = "color of circle ?"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return make_model(make_config(request.param, layers=3, tower_depth=2), seed=0).eval()


def chat(*images):
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]


def noise(width, height, seed=0):
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def process(processor, messages):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


def test_words_survive_the_tokenizer():
    tokenizer = make_tokenizer()
    for word in WORDS:
        (token,) = tokenizer.encode(word)
        assert token == TOKEN_ID[word]
        assert tokenizer.decode([token]) == word
    assert tokenizer.decode(tokenizer.encode("color of circle?")) == QUESTION
    assert tokenizer.encode("colour") == [tokenizer.unk_token_id]
    assert set(ANSWERS) <= set(WORDS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_are_small_and_follow_the_seed(architecture):
    one, same, other = (make_model(make_config(architecture), seed=seed) for seed in (1, 1, 2))
    assert sum(p.numel() for p in one.parameters()) < 3_500_000
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.config.model_type == architecture
    assert one.lm_head.weight is one.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("size", "tokens"), [((160, 160), 100), ((80, 80), 25), ((320, 160), 200), ((320, 320), 400), ((640, 640), 900)]
)
def test_qwen_processor_makes_a_visual_token_of_16_by_16_pixels(size, tokens):
    inputs = process(make_processor("qwen2_5_vl"), chat(noise(*size)))
    assert (inputs["input_ids"] == TOKEN_ID[IMAGE_PAD]).sum() == tokens
    assert inputs["pixel_values"].shape == (4 * tokens, 3 * 2 * 8 * 8)
    assert inputs["input_ids"].shape == (1, tokens + 2 + 4)


@pytest.mark.parametrize("size", [(160, 160), (80, 80), (320, 160), (320, 320)])
def test_llava_processor_makes_100_visual_tokens_of_any_image(size):
    inputs = process(make_processor("llava"), chat(noise(*size)))
    assert (inputs["input_ids"] == TOKEN_ID[IMAGE_PAD]).sum() == 100
    assert inputs["pixel_values"].shape == (1, 3, 160, 160)
    assert inputs["input_ids"].shape == (1, 100 + 2 + 4)


def test_a_model_answers_about_several_images_and_in_batches(model):
    processor = make_processor(model.config.model_type)
    one, pair = chat(noise(160, 160)), chat(noise(160, 160), noise(160, 160, seed=1))
    alone = [process(processor, messages) for messages in (one, pair)]
    assert (alone[1]["input_ids"] == TOKEN_ID[IMAGE_PAD]).sum() == 200
    text = processor.apply_chat_template([one, pair], add_generation_prompt=True)
    images = [part["image"] for messages in (one, pair) for part in messages[0]["content"] if part["type"] == "image"]
    together = processor(text=text, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = torch.cat([model(**inputs).logits[:, -1] for inputs in alone])
        assert torch.allclose(model(**together).logits[:, -1], expected, atol=1e-4)
        assert model.generate(**together).shape[1] <= together["input_ids"].shape[1] + 2


def test_llava_processor_keeps_the_pixels_of_a_square_of_160_pixels():
    image = noise(160, 160)
    pixels = process(make_processor("llava"), chat(image))["pixel_values"][0]
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(pixels, expected, atol=1e-6)


def test_tiles_go_row_by_row():
    image = np.zeros((320, 480, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            image[160 * row : 160 * row + 160, 160 * column : 160 * column + 160] = 3 * row + column
    small = np.full((160, 160, 3), 6, np.uint8)
    found = tiles([image, small])
    assert [tile.shape for tile in found] == [(160, 160, 3)] * 7
    assert [np.unique(tile).tolist() for tile in found] == [[number] for number in range(7)]


def test_an_exported_folder_loads_with_the_auto_classes(model, tmp_path):
    folder = export(model, tmp_path / "model")
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}
    assert AutoTokenizer.from_pretrained(folder).encode("red") == [TOKEN_ID["red"]]
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(loaded) is type(model)
    assert loaded.dtype == torch.bfloat16
    for one, other in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))
    assert loaded.generation_config.eos_token_id == TOKEN_ID["<|im_end|>"]


def test_an_exported_processor_does_what_the_original_does(model, tmp_path):
    folder = export(model, tmp_path / "model")
    processor, original = load_processor(folder), make_processor(model.config.model_type)
    text = processor.apply_chat_template(chat(noise(160, 160)), add_generation_prompt=True)
    assert text == f"<|vision_start|><|image_pad|><|vision_end|>{QUESTION}"
    messages = chat(noise(160, 160), noise(160, 160, seed=1))
    inputs, expected = process(processor, messages), process(original, messages)
    assert inputs.keys() == expected.keys()
    for key in inputs:  # torchvision, where it is there, divides in another order
        torch.testing.assert_close(inputs[key], expected[key], rtol=1e-5, atol=1e-6)


def test_auto_processor_loads_an_exported_folder(model, tmp_path):
    folder = export(model, tmp_path / "model")
    if model.config.model_type == "qwen2_5_vl" and not is_torchvision_available():
        pytest.skip("AutoProcessor needs torchvision for every Qwen2.5-VL")
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is type(load_processor(folder))
    assert (process(processor, chat(noise(160, 160)))["input_ids"] == TOKEN_ID[IMAGE_PAD]).sum() == 100


def test_export_replaces_a_folder(model, tmp_path):
    folder = tmp_path / "model"
    export(model, folder)
    (folder / "old.json").write_text("{}")
    assert export(model, folder) == folder
    assert not (folder / "old.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((folder / "config.json").read_text())["model_type"] == model.config.model_type
