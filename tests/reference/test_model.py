"""The reference model: sizes, tokenizer, processor, the fast forward pass, and the weights in the package."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils.import_utils import is_torchvision_available

from foveate import reference
from foveate.reference.batches import make_batch
from foveate.reference.evaluate import accuracy, evaluate, examples, spread
from foveate.reference.fast import VISUAL, FastForward
from foveate.reference.model import (
    IMAGE_PAD,
    PATH,
    TOKEN_ID,
    export,
    load_processor,
    make_config,
    make_model,
    make_processor,
    make_tokenizer,
)
from foveate.reference.scenes import ANSWERS, TASKS, WORDS

QUESTIONS = 24


@pytest.fixture(scope="module")
def model():
    """An untrained model whose outputs are far from zero."""
    model = make_model(make_config(layers=3, tower_depth=2)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def shipped():
    return reference.load()


def chat(question, image=None):
    picture = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


def test_words_survive_the_tokenizer():
    tokenizer = make_tokenizer()
    for word in WORDS:
        (token,) = tokenizer.encode(word)
        assert token == TOKEN_ID[word]
        assert tokenizer.decode([token]) == word
    assert tokenizer.decode(tokenizer.encode("color of circle?")) == "color of circle ?"
    assert tokenizer.encode("colour") == [tokenizer.unk_token_id]
    assert set(ANSWERS) <= set(WORDS)


@pytest.mark.parametrize(("size", "tokens"), [((160, 160), 100), ((80, 80), 25), ((320, 160), 200), ((640, 640), 400)])
def test_processor_makes_a_visual_token_of_16_by_16_pixels(size, tokens):
    image = Image.new("RGB", size, "red")
    inputs = make_processor().apply_chat_template(
        chat("color of circle ?", image), tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert (inputs["input_ids"] == TOKEN_ID[IMAGE_PAD]).sum() == tokens
    assert inputs["pixel_values"].shape == (4 * tokens, 3 * 2 * 8 * 8)
    assert inputs["input_ids"].shape == (1, tokens + 2 + 4)


def test_an_exported_folder_loads_with_the_auto_classes(model, tmp_path):
    folder = export(model, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(folder).encode("red") == [TOKEN_ID["red"]]
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    for one, other in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))
    processor = load_processor(folder)
    text = processor.apply_chat_template(chat("color of circle ?"), add_generation_prompt=True)
    assert text == "<|vision_start|><|image_pad|><|vision_end|>color of circle ?"
    if is_torchvision_available():
        assert type(AutoProcessor.from_pretrained(folder)) is type(processor)


def test_fast_forward_equals_the_stock_forward(model):
    fast = FastForward(model, QUESTIONS)
    batch = make_batch([0, 1])
    column = 3
    with torch.no_grad():
        visual = fast.see(batch.images)
        logits, ends, _ = fast.read(visual, batch.questions, batch.answers[:, 0])
        inputs = stock_inputs(batch, column)
        stock = model(**inputs).logits
        assert torch.allclose(stock[:, -1], logits[:, column], atol=1e-5)
        inputs = stock_inputs(batch, 0)
        inputs["input_ids"] = torch.cat((inputs["input_ids"], batch.answers[:, :1]), 1)
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        stock = model(**inputs).logits
        assert torch.allclose(stock[:, -1], ends, atol=1e-5)


def stock_inputs(batch, column):
    tokenizer, processor = make_tokenizer(), make_processor()
    text = processor.apply_chat_template([chat(tokenizer.decode(q[column])) for q in batch.questions])
    return dict(processor(text=text, images=list(batch.images.numpy()), return_tensors="pt", padding=True))


def test_masks_of_the_fast_forward_equal_removal(model):
    fast = FastForward(model, QUESTIONS)
    batch = make_batch([0, 1])
    visual = fast.see(batch.images)

    def logits(visual, masks=None):
        return fast.read(visual, batch.questions, batch.answers[:, 0], masks=masks)[0]

    other = visual.clone()
    dropped = torch.ones(VISUAL, dtype=torch.bool)
    dropped[spread(25)] = False
    other[:, dropped] = 7.0
    with torch.no_grad():
        assert torch.equal(logits(visual, fast.leave_at(3)), logits(visual))
        assert torch.equal(logits(visual, fast.keep(torch.arange(VISUAL))), logits(visual))
        for masks in (fast.keep(spread(25)), fast.leave_at(0)):
            assert torch.allclose(logits(visual, masks), logits(other, masks), atol=1e-6)
        late = fast.leave_at(2)
        assert not torch.allclose(logits(visual, late), logits(other, late), atol=1e-3)


@pytest.mark.parametrize("number", [50, 25, 10])
def test_spread_takes_distinct_tokens(number):
    assert len(spread(number).unique()) == len(spread(number)) == number


def test_examples_are_balanced_over_tasks():
    found = examples(per_task=5)
    assert [sum(e.question.task == task for e in found) for task in TASKS] == [5] * len(TASKS)
    assert [e.question for e in examples(per_task=5)] == [e.question for e in found]
    assert [e.question for e in examples(per_task=5, seed=1)] != [e.question for e in found]


def test_shipped_weights_answer(shipped):
    model, processor = shipped
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    found = evaluate(model, processor, per_task=12)
    assert set(found) == set(TASKS)
    assert np.mean(list(found.values())) >= 0.85, found


def test_shipped_model_is_blind_without_the_image(shipped):
    model, _ = shipped
    fast = FastForward(model, QUESTIONS)
    batch = make_batch([reference.split_seed("test", index) for index in range(16)])
    with torch.no_grad():
        visual = fast.see(batch.images)
    full = np.mean(list(accuracy(fast, batch, visual).values()))
    none = np.mean(list(accuracy(fast, batch, visual, fast.leave_at(0)).values()))
    assert none < 0.45 < full


def test_shipped_model_ends_its_turn(shipped):
    model, processor = shipped
    scene = reference.make_scene(reference.split_seed("test", 0))
    question = chat("texture of background ?", Image.fromarray(scene.image))
    inputs = processor.apply_chat_template(question, tokenize=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer) == f"{scene.texture} <|im_end|>"


def test_the_folder_is_small_and_holds_no_pickle():
    files = [path for path in PATH.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    assert {path.suffix for path in files} <= {".py", ".md", ".json", ".jinja", ".safetensors"}
    assert json.loads((PATH / "metrics.json").read_text())["accuracy"].keys() == set(TASKS)
