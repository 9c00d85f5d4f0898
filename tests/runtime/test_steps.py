"""Decode steps: layers that see all that their cache holds run as stock code has them, others are given what changes, once."""

from __future__ import annotations

import contextlib
import copy
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, generate

import foveate
from foveate import DyCoke, Stride
from foveate.errors import UnsupportedModelError
from foveate.runtime.arguments import LayerArguments
from foveate.runtime.decoder import DecoderHooks
from foveate.runtime.steady import Cut, Steady


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often arguments were derived, and layers were looked at one by one."""
    counts = {"derive": 0, "before": 0}

    def counted(owner: type, name: str, key: str) -> None:
        stock: Callable[..., Any] = getattr(owner, name)

        def ours(*args: Any, **kwargs: Any) -> Any:
            counts[key] += 1
            return stock(*args, **kwargs)

        monkeypatch.setattr(owner, name, ours)

    counted(LayerArguments, "derive", "derive")
    counted(DecoderHooks, "_before_layer", "before")
    return counts


def steps(model: Any, batch: Any, n: int) -> list[torch.Tensor]:
    """Logits of ``n`` greedy steps after the prompt."""
    out = generate(model, batch, output_logits=True, return_dict_in_generate=True, min_new_tokens=n)
    return list(out.logits)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_row_alone_asks_nothing_of_a_step(family: str, asked: dict[str, int]) -> None:
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS[family][:1])
    with foveate.compress(model, Stride(ratio=0.5, layers=(1, 3))), torch.no_grad():
        cache = model(**batch).past_key_values
        prompt, asked["derive"], asked["before"] = dict(asked), 0, 0
        length = batch["input_ids"].shape[1]
        step: Any = dict(input_ids=torch.tensor([[20]]), attention_mask=torch.ones(1, length + 1, dtype=torch.long))
        if family in tiny.PACKED:  # stock Qwen numbers a bare step by the whole mask
            step["position_ids"] = torch.full((3, 1, 1), length)
        model(**step, past_key_values=cache)
    assert prompt["before"] == len(tiny.lm(model).layers)
    assert asked == {"derive": 0, "before": 0}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_batch_cuts_a_mask_once_for_layers_that_hold_the_same(
    family: str, asked: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps derive nothing anew."""
    cuts, of = [0], Cut.of
    monkeypatch.setattr(Cut, "of", lambda self, mask: (cuts.__setitem__(0, cuts[0] + 1), of(self, mask))[1])
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS[family])
    cut = (1, 3)
    with foveate.compress(model, Stride(ratio=0.5, layers=cut)), torch.no_grad():
        generate(model, batch)
        asked["derive"] = cuts[0] = 0
        out = generate(model, batch)
    n = out.shape[1] - batch["input_ids"].shape[1] - 1  # steps
    assert asked["derive"] <= len(tiny.lm(model).layers)  # in the prompt
    assert cuts[0] == n * len(cut)


def test_a_decode_site_settles_what_comes_after_it(asked: dict[str, int]) -> None:
    """No layer is looked at by itself, also not the one whose attention is read."""
    model, batch = tiny.model("llava", fresh=True), tiny.inputs("llava", ROWS["llava"][:1])
    with foveate.compress(model, DyCoke(ratio=1.0, decode_ratio=0.3, layer=3)), torch.no_grad():
        out = generate(model, batch)
    n = out.shape[1] - batch["input_ids"].shape[1] - 1
    assert asked["before"] == len(tiny.lm(model).layers)
    assert n > 1


def calls_of_a_step(layers: int, method: foveate.Method | None, rows: int) -> int:
    """Python functions that the sixth step calls: a choice that lasts has done all that it does once."""
    model = tiny.build(tiny.config("llava", num_hidden_layers=layers))
    batch, forwards, found = tiny.inputs("llava", ROWS["llava"][:rows]), [0], [0]

    def note(frame: Any, event: str, arg: Any) -> None:
        found[0] += event == "call"

    def begin(*_: Any) -> None:
        forwards[0] += 1
        sys.setprofile(note if forwards[0] == 7 else None)

    gc.collect()  # or what others have left would be collected in this step
    gc.disable()

    model.register_forward_pre_hook(begin)
    model.register_forward_hook(lambda *_: sys.setprofile(None))
    with contextlib.nullcontext() if method is None else foveate.compress(model, method):
        model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    gc.enable()
    return found[0]


@pytest.mark.parametrize(
    ("method", "rows", "most"),
    [(Stride(ratio=0.5, layers=(1,)), 1, 4), (Stride(ratio=0.5, layers=(1,)), 2, 8), (DyCoke(layer=1), 1, 6)],
)
def test_what_a_step_costs_beside_stock_does_not_grow_much_with_the_layers(
    method: foveate.Method, rows: int, most: int
) -> None:
    """A count, as times say nothing on a busy machine: so many calls of a function more, a layer."""
    few, many = (calls_of_a_step(n, method, rows) - calls_of_a_step(n, None, rows) for n in (4, 12))
    assert many - few <= 8 * most
    assert few < 400


def test_layers_that_hold_the_same_share_what_is_known_of_it() -> None:
    """Also after beams have chosen rows, after a crop, and in a copy."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    with foveate.compress(model, Stride(ratio=0.5, layers=(2,))), torch.no_grad():
        cache = model(**batch).past_key_values

        def kinds() -> int:
            return len({id(entry.kv) for entry in cache.layers[2:]})

        assert kinds() == 1
        cache.reorder_cache(torch.tensor([1, 0, *range(2, len(batch["input_ids"]))]))
        assert kinds() == 1
        cache.crop(-1)
        assert kinds() == 1
        cache = copy.deepcopy(cache)
        assert kinds() == 1
        cache.batch_repeat_interleave(2)
        assert kinds() == 1


def test_a_prompt_of_another_thread_does_not_disturb_a_step() -> None:
    """Layers are stock while no thread is in a forward that changes their arguments; each thread knows its own."""
    model = tiny.model("llava", fresh=True)
    batch = tiny.inputs("llava", ROWS["llava"][:1])
    with foveate.compress(model, Stride(ratio=0.5, layers=(1,))), torch.no_grad():
        expected = generate(model, batch)
        found: list[torch.Tensor] = []

        def work() -> None:
            with torch.no_grad():
                found.extend(generate(model, batch) for _ in range(3))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 9
    assert all(torch.equal(each, expected) for each in found)


def test_where_a_window_has_ended_compiled_layers_cut_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of a layer that slides begins later than the sequence then; before, it is cut as all are."""
    model, found, enter = tiny.model("gemma3"), list[bool](), Steady.enter

    def note(self: Any, *entered: Any) -> None:
        enter(self, *entered)
        found.append(bool(self.cuts))

    monkeypatch.setattr(Steady, "enter", note)
    with foveate.compress(model, Stride(ratio=0.5, layers=(1,))), torch.no_grad():
        generate(model, tiny.inputs("gemma3", ROWS["gemma3"][:2]))
        config = model.config.get_text_config()
        monkeypatch.setattr(config, "sliding_window", 1000)
        generate(model, tiny.inputs("gemma3", ROWS["gemma3"][:2]))
    assert found == [False] * 5 + [True] * 3


def test_a_forward_that_fails_leaves_the_next_one_whole() -> None:
    model, batch = tiny.model("llava", fresh=True), tiny.inputs("llava", ROWS["llava"][:1])
    method = Stride(ratio=0.5, layers=(1,))
    with foveate.compress(model, method), torch.no_grad():
        expected = steps(model, batch, 4)
        last = tiny.lm(model).layers[-1]
        hook = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("mine")))
        with pytest.raises(KeyError, match="mine"):
            model(**batch)
        hook.remove()
        for ours, theirs in zip(steps(model, batch, 4), expected):
            close(ours, theirs)


def test_a_layer_cannot_be_copied_away_from_its_model() -> None:
    """A copy of its forward would run the layer that it was copied from."""
    model = tiny.model("llava", fresh=True)
    for part in (tiny.lm(model).layers[1], tiny.lm(model).norm):
        with foveate.compress(model, "stride"), pytest.raises(UnsupportedModelError, match="copied or pickled"):
            copy.deepcopy(part)
        copy.deepcopy(part)
