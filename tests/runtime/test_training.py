"""Losses and gradients: labels stay full length, checkpointing changes nothing, threads do not meet."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import tiny
import torch
import transformers
from calls import ROWS, close
from packaging.version import Version
from plans import PLANS

import foveate
from foveate.errors import InputError, UnsupportedSiteError


def loss_and_gradients(model: Any, batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = model(**batch, labels=labels).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("plan", ["stride", "cascade", "fastv", "divprune", "renumber", "visionzip", "blocks", "tome"])
def test_gradient_checkpointing_changes_nothing(family: str, plan: str) -> None:
    if Version(transformers.__version__) < Version("5.23"):
        pytest.skip("older versions run layer hooks again inside the checkpoint")
    model, batch = tiny.model(family, fresh=True).train(), tiny.inputs(family, ROWS[family], padding_side="right")
    with foveate.compress(model, PLANS[plan]):
        loss, gradients = loss_and_gradients(model, batch)
        assert len(gradients) > 20
        assert all(g.isfinite().all() for g in gradients)
        model.gradient_checkpointing_enable()
        if plan == "tome":
            with pytest.raises(UnsupportedSiteError, match="gradient checkpointing"):
                loss_and_gradients(model, batch)
            return
        again, same = loss_and_gradients(model, batch)
    close(again, loss)
    for a, b in zip(gradients, same, strict=True):
        close(a, b)


def test_text_loss_ignores_what_was_dropped(family: str) -> None:
    """Withdrawing at the last layer leaves the text's loss nearly alone, and its positions exactly."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    labels = batch["input_ids"].masked_fill(tiny.visual_mask(family, batch) | (batch["attention_mask"] == 0), -100)
    with torch.no_grad(), foveate.compress(model, foveate.VTW(layer=5)):
        out = model(**batch, labels=labels)
    logits = out.logits[:, :-1].flatten(0, 1)
    close(out.loss, torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()))


def test_an_exception_leaves_nothing_behind(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    expected = tiny.text_logits(model, batch)
    with foveate.compress(model, foveate.Stride(keep=0.5)):
        reduced = tiny.text_logits(model, batch)
        layer = tiny.lm(model).layers[3]
        bomb = layer.mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
        with pytest.raises(RuntimeError, match="boom"):
            tiny.text_logits(model, batch)
        bomb.remove()
        assert torch.equal(tiny.text_logits(model, batch), reduced)
    assert torch.equal(tiny.text_logits(model, batch), expected)


def test_two_models_two_methods_two_threads(family: str) -> None:
    batch = tiny.inputs(family, ROWS[family])
    methods = [foveate.Stride(ratio=0.5, layers=(0, 2)), foveate.ToMe(keep=0.6)]
    models = [tiny.model(family, fresh=True) for _ in methods]
    handles = [foveate.compress(model, method) for model, method in zip(models, methods, strict=True)]
    expected = [tiny.text_logits(model, batch) for model in models]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(8):
            if not torch.equal(tiny.text_logits(models[i], batch), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    assert not wrong
    assert not torch.equal(expected[0], expected[1])


def test_a_loss_over_all_tokens_of_all_layers_is_refused_with_a_sentence() -> None:
    """The load-balancing loss of a mixture of experts; where nothing is missing it is the stock one."""
    model, batch = tiny.model("qwen3_vl_moe"), tiny.inputs("qwen3_vl_moe", ROWS["qwen3_vl_moe"])
    asked = dict(batch, labels=batch["input_ids"], output_router_logits=True)
    with torch.no_grad():
        stock = model(**asked).aux_loss
        with foveate.compress(model, foveate.Stride(keep=1.0)):
            assert torch.equal(model(**asked).aux_loss, stock)
        with foveate.compress(model, foveate.Stride()), pytest.raises(InputError, match="output_router_logits=False"):
            model(**asked)
        assert torch.equal(model(**asked).aux_loss, stock)


def test_what_only_the_loss_reads_passes_the_layers(family: str) -> None:
    """Targets that are shifted already, as sequence parallel training has them, and their count: the loss is the same."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad(), foveate.compress(model, PLANS["blocks"] + PLANS["cascade"]):
        expected = model(**batch, labels=labels).loss
        of_the_loss = dict(labels=labels, shift_labels=shifted, num_items_in_batch=(shifted >= 0).sum())
        close(model(**batch, **of_the_loss).loss, expected)


def test_what_a_loss_of_ones_own_names_passes_and_nothing_else() -> None:
    model, batch = tiny.model("mistral3", fresh=True), tiny.inputs("mistral3", ROWS["mistral3"])

    def loss(logits: Any, labels: Any, vocab_size: int, weights: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return (logits.logsumexp(-1) * weights).sum()

    model.loss_function = loss
    given = dict(batch, labels=batch["input_ids"])
    ones = torch.ones(batch["input_ids"].shape)
    with torch.no_grad(), foveate.compress(model, foveate.Stride()):
        close(model(**given, weights=ones).loss, model(**batch).logits.logsumexp(-1).sum())
        with pytest.raises(UnsupportedSiteError, match=r"takes 'others'.*'mistral3' does not describe"):
            model(**given, weights=ones, others=ones)
