"""The weights in the package: they answer, they end their turn, they are small and plain."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

import foveate_reference as reference
from foveate_reference.batches import Recipe, make_batch
from foveate_reference.evaluate import accuracy
from foveate_reference.fast import FastForward


@pytest.fixture(scope="module", params=reference.ARCHITECTURES)
def shipped(request):
    return reference.load(request.param)


def mean_of_core(found):
    return np.mean([found[task] for task in reference.CORE])


def test_a_shipped_model_looks_at_the_image(shipped):
    """Core tasks on the fast path, blind, seeing, and while the visual tokens are there for a few layers only."""
    fast = FastForward(shipped[0])
    batch = make_batch([Recipe("scene", reference.split_seed("test", index)) for index in range(32)])
    assert mean_of_core(accuracy(fast, [batch], blind=True)) < 0.4
    means = [mean_of_core(accuracy(fast, [batch], leave_at=layer)) for layer in (3, 5, 10)]
    assert means[0] < means[1] + 0.01 < means[2] - 0.05, means
    assert means[2] > 0.85


def test_a_shipped_model_ends_its_turn(shipped):
    model, processor = shipped
    (sample,) = reference.samples(tasks=["texture"], per_task=1)
    inputs = processor.apply_chat_template(sample.messages[:1], tokenize=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer) == f"{sample.answer} <|im_end|>"


@pytest.mark.parametrize("name", reference.ARCHITECTURES)
def test_a_folder_is_small_and_loads_like_any_other(name):
    folder = reference.PATHS[name]
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() < 4_000_000
    assert model.config.get_text_config().num_hidden_layers >= 8
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["accuracy"].keys() == set(reference.TASKS)
