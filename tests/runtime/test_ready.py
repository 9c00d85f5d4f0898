"""Steps are made ready where the whole model is called; where a part of it is called, its own hooks do what there is to do."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS

import foveate
from foveate import DyCoke, Stride, VisionZip

METHOD = VisionZip(keep=0.5) + Stride(ratio=0.5, layers=(1,))


@pytest.fixture
def model() -> Iterator[Any]:
    with torch.no_grad():
        yield tiny.model("llava", fresh=True)


@pytest.fixture
def batch() -> Any:
    return tiny.inputs("llava", ROWS["llava"])


def step_after(batch: Any) -> dict[str, Any]:
    """What a model is called with for a token after the prompt."""
    mask = batch["attention_mask"]
    return {"input_ids": torch.full((len(mask), 1), 20), "attention_mask": torch.cat([mask, mask[:, -1:]], 1)}


@pytest.mark.parametrize("method", [METHOD, DyCoke(ratio=1.0, layer=2), foveate.ADSC(layers=(2,)), foveate.IPCV()])
def test_a_forward_without_hooks_of_the_whole_model_is_the_same(model: Any, batch: Any, method: foveate.Method) -> None:
    """An adapter may call ``forward`` in place of the model."""
    with foveate.compress(model, method) as handle:
        found = []
        for call in (model, model.forward):
            cache = model(**batch).past_key_values
            logits = [call(**step_after(batch), past_key_values=cache).logits]
            mask = torch.nn.functional.pad(batch["attention_mask"], (0, 2), value=1)
            two = dict(input_ids=torch.full((len(mask), 1), 21), attention_mask=mask)
            logits.append(call(**two, past_key_values=cache).logits)
            found.append((torch.cat(logits), replace(handle.report(), seconds={})))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert found[0][1].decode_steps == 2


def test_another_thread_may_call_a_part_while_a_step_is_in_flight(model: Any, batch: Any) -> None:
    found, me = [], threading.current_thread()

    def ask() -> None:
        with torch.no_grad():
            found.append(model.model(**batch).last_hidden_state)

    def meanwhile(*_: Any) -> None:
        if threading.current_thread() is me:
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()

    with foveate.compress(model, METHOD):
        expected = model.model(**batch).last_hidden_state
        cache = model(**batch).past_key_values
        alone = model(**step_after(batch), past_key_values=copy.deepcopy(cache)).logits
        hook = tiny.lm(model).layers[2].register_forward_pre_hook(meanwhile)
        logits = model(**step_after(batch), past_key_values=cache).logits
        hook.remove()
    assert torch.equal(found[0], expected)
    assert torch.equal(logits, alone)


@pytest.mark.parametrize("error", [KeyboardInterrupt, KeyError])
def test_after_a_step_that_was_interrupted_all_is_as_before(model: Any, batch: Any, error: type[BaseException]) -> None:
    """Hooks that torch calls after an error are not called after an interrupt."""

    def stop(*_: Any) -> None:
        raise error

    with foveate.compress(model, METHOD):
        expected = model.model(**batch).last_hidden_state
        cache = model(**batch).past_key_values
        again = copy.deepcopy(cache)
        logits = model(**step_after(batch), past_key_values=copy.deepcopy(cache)).logits
        hook = tiny.lm(model).layers[2].register_forward_pre_hook(stop)
        with pytest.raises(error):
            model(**step_after(batch), past_key_values=cache)
        hook.remove()
        assert torch.equal(model.model(**batch).last_hidden_state, expected)
        assert torch.equal(model(**step_after(batch), past_key_values=again).logits, logits)
