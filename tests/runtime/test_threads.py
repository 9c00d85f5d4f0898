"""Threads that share a model: whose report it is, and what attaching and removing does while another one is in a forward."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS

import foveate
from foveate.runtime import calls

SOME = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next"])


def in_thread(work: Any, name: str = "worker") -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def test_a_report_is_of_the_last_call_that_ended() -> None:
    """Whichever thread made it, and it says whose; before any call it is a sentence."""
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", ROWS["qwen2_5_vl"])
    seen: list[Any] = []
    with torch.no_grad(), foveate.compress(model, foveate.FastV(layer=1)) as handle, handle.trace() as trace:
        for ask in (handle.report, trace):
            with pytest.raises(foveate.FoveateError, match="no call of the model has ended"):
                ask()
        in_thread(lambda: model.generate(**batch, max_new_tokens=3)).join()
        other = handle.report()
        assert (other.thread, trace().thread) == ("worker", "worker")
        assert other.decode_steps == 2
        assert "worker, not this one" in str(other)
        assert other.to_dict()["thread"] == "worker"
        model.generate(**batch, max_new_tokens=5)
        mine = handle.report()
        assert mine.thread is None
        assert "thread" not in mine.to_dict()
        assert mine.decode_steps == 4
        assert replace(mine, thread="MainThread", seconds={}) == replace(
            in_that_thread(handle.report, seen), seconds={}
        )
        assert mine.flops["prefill"] == other.flops["prefill"] > 0


def test_calls_are_recorded_in_detail_inside_a_block_only() -> None:
    """Blocks may be nested."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    with torch.no_grad(), foveate.compress(model, foveate.FastV(layer=1)) as handle:
        with handle.trace() as trace:
            with handle.trace():
                pass
            model(**batch)
            assert trace().detailed
        model(**batch)
        assert not trace().detailed


def in_that_thread(ask: Any, seen: list[Any]) -> Any:
    in_thread(lambda: seen.append(ask())).join()
    return seen.pop()


def paused(model: Any, batch: Any) -> tuple[threading.Thread, threading.Event, list[Any]]:
    """A thread in the middle of a forward, what lets it go on, and what will come out."""
    inside, go, out = threading.Event(), threading.Event(), []

    def pause(*_: Any) -> None:
        inside.set()
        go.wait(60)

    def work() -> None:
        stop = tiny.lm(model).layers[3].mlp.register_forward_pre_hook(pause)
        with torch.no_grad():
            out.append(model(**batch).logits)
        stop.remove()

    thread = in_thread(work, "slow")
    assert inside.wait(60)
    return thread, go, out


@SOME
def test_taking_it_off_waits_for_a_forward(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad():
        stock = model(**batch).logits
        handle = foveate.compress(model, foveate.IPCV() + foveate.FastV(layer=1))
        expected = model(**batch).logits
    thread, go, out = paused(model, batch)
    monkeypatch.setattr(calls, "PATIENCE", 0.01)
    with pytest.raises(foveate.FoveateError, match="the thread 'slow' has been in a forward"):
        handle.remove()
    monkeypatch.setattr(calls, "PATIENCE", 60.0)
    removing = in_thread(handle.remove)
    removing.join(0.05)
    assert removing.is_alive()
    go.set()
    removing.join(60)
    thread.join(60)
    assert torch.equal(out[0], expected)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, stock)


@SOME
def test_a_model_that_is_busy_is_compressed_and_freed(family: str) -> None:
    """While a thread calls it again and again: a call ends as it should, or with a sentence of ours."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    stock, stop, wrong = tiny.text_logits(model, batch), threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    model(**batch)
            except foveate.FoveateError:
                pass
            except Exception as error:
                wrong.append(error)

    thread = in_thread(work)
    for method in (foveate.IPCV() + foveate.FastV(layer=1), foveate.ToMe(), foveate.Stride()) * 5:
        with foveate.compress(model, method):
            time.sleep(0.02)
    stop.set()
    thread.join(60)
    assert not wrong
    assert torch.equal(tiny.text_logits(model, batch), stock)


@SOME
@pytest.mark.parametrize("method", [foveate.ToMe(), foveate.FastV(layer=1)])
def test_a_method_that_comes_in_the_middle_of_a_forward_is_said(family: str, method: foveate.Method) -> None:
    """That forward has not met the hooks of the whole model; those of its parts would drop tokens unnoticed."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    stock = tiny.text_logits(model, batch)
    handles: list[foveate.Handle] = []
    watch = model.model.register_forward_pre_hook(lambda *_: handles.append(foveate.compress(model, method)))
    try:
        with torch.no_grad(), pytest.raises(foveate.FoveateError, match="while a forward of this thread was in it"):
            model(**batch)
    finally:
        watch.remove()
        handles[0].remove()
    assert torch.equal(tiny.text_logits(model, batch), stock)
