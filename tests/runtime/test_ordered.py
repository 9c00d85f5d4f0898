"""Where a decode site's choice lasts, cache entries are put in order for it: what comes of it is what gathering gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close
from torch import Tensor

import foveate
from foveate import DyCoke, Reduction, Site, Stride, Tokens
from foveate.runtime import steps
from foveate.runtime.slots import LastSlots

N = 12


class Changing(DyCoke):
    """See the first, every second or the last visual tokens of an image, each for four steps."""

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        step = tokens.state["step"] = tokens.state.get("step", -1) + 1
        places, start = [], 0
        for n, k in zip(tokens.pool_counts, tokens.pool_budget(site)):
            ways = torch.arange(k), torch.arange(k) * n // max(k, 1), torch.arange(n - k, n)
            places.append(start + ways[step // 4 % 3])
            start += n
        return tokens.keep_pooled(torch.cat(places), tokens.pool_budget(site))


METHOD = Changing(ratio=1.0, decode_ratio=0.4, layer=2)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """What a function returns when entries are put in order, and when keys and values are gathered."""

    def run(call: Callable[[], Any]) -> list[Any]:
        found, put = [], steps.put_in_order
        for lasting in (2, 1000):
            monkeypatch.setattr(steps, "LASTING", lasting)
            done = [0]

            def counted(entries: Any, kv: Any, cache: Any, done: list[int] = done) -> Any:
                after = put(entries, kv, cache)
                done[0] += after is not None
                return after

            monkeypatch.setattr("foveate.runtime.layers.put_in_order", counted)
            with torch.no_grad():
                found.append(call())
            assert bool(done[0]) == (lasting == 2)
        return found

    return run


def logits(model: Any, batch: dict[str, Tensor], **options: Any) -> Tensor:
    """``(n, B, V)`` of a greedy answer; with beams, of the step of each token of the best one."""
    out = model.generate(
        **batch,
        **{"max_new_tokens": N, "min_new_tokens": N, "do_sample": False} | options,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(list(out.logits))


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_choice_that_changes(rows: int, cut: bool, impl: str, both: Any) -> None:
    """Also with rows of different lengths; and where layers hold fewer tokens."""
    model, batch = tiny.model("llava", impl), tiny.inputs("llava", ROWS["llava"][:rows])
    with foveate.compress(model, Stride(ratio=0.5, layers=(1,)) + METHOD if cut else METHOD):
        close(*both(lambda: logits(model, batch)))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5"])
def test_other_models(family: str, both: Any) -> None:
    """With position ids of three axes; and with layers that have no cache entry."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:2])
    method = Changing(ratio=1.0, decode_ratio=0.4, layer=3)
    with foveate.compress(model, method):
        close(*both(lambda: logits(model, batch)))


def after(cache: Any, model: Any, batch: dict[str, Tensor], n: int, start: int = 20) -> list[Tensor]:
    """Logits of ``n`` steps, given words, on a cache that is changed by them."""
    found, mask = [], batch["attention_mask"]
    mask = torch.nn.functional.pad(mask, (0, int(cache.get_seq_length()) - mask.shape[1]), value=1)
    for i in range(n):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        ids = torch.full((len(mask), 1), start + i)
        found.append(model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[:, -1])
    return found


def reordered(cache: Any) -> Any:
    cache.reorder_cache(torch.tensor([1, 0]))
    return cache


def cropped(cache: Any) -> Any:
    cache.crop(-2)
    return cache


@pytest.mark.parametrize("change", [reordered, cropped, copy.deepcopy])
def test_a_cache_goes_on_whatever_becomes_of_it(change: Any, both: Any) -> None:
    """Beams choose rows of it, guesses are cropped off, it is copied: then a choice is made anew, and may last again."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:2])

    def call() -> Tensor:
        cache = model(**batch).past_key_values
        found = after(cache, model, batch, 4)
        return torch.stack([*found, *after(change(cache), model, batch, 6, start=30)])

    with foveate.compress(model, METHOD):
        close(*both(call))


def test_a_second_turn(both: Any) -> None:
    """A second image, after entries of the first one were put in order; then text of several tokens."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1])

    def call() -> Tensor:
        cache = model(**batch).past_key_values
        found = after(cache, model, batch, 4)
        for more in (batch, {"input_ids": torch.tensor([[21, 22, 23]])}):
            mask = torch.ones(1, int(cache.get_seq_length()) + more["input_ids"].shape[1], dtype=torch.long)
            found.append(model(**{**more, "attention_mask": mask}, past_key_values=cache).logits[:, -1])
            found += after(cache, model, {"attention_mask": mask}, 5)
        return torch.stack(found)

    with foveate.compress(model, METHOD):
        close(*both(call))


@pytest.mark.parametrize("n", [2, 6])
def test_rows_that_beams_choose_keep_what_they_see(n: int) -> None:
    """Their choice, and the order that entries were put in for it."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:3])
    rows = torch.tensor([2, 0, 0, 1])
    with foveate.compress(model, DyCoke(ratio=1.0, decode_ratio=0.4, layer=2, threshold=0.0)), torch.no_grad():
        cache = model(**batch).past_key_values
        after(cache, model, batch, n)
        plain = copy.deepcopy(cache)
        cache.reorder_cache(rows)
        expected = torch.stack(after(plain, model, batch, 6, start=30))
        mask = {"attention_mask": batch["attention_mask"][rows]}
        found = after(cache, model, mask, 1, start=30)
        assert isinstance(cache.layers[-1].visible, LastSlots) == (n == 6)
        found = torch.stack([*found, *after(cache, model, mask, 5, start=31)])
        assert isinstance(cache.layers[-1].visible, LastSlots)
    close(found, expected[:, rows])


def test_what_steps_see_is_a_view() -> None:
    """Once it is in order, no key or value is copied but by the cache itself."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1])
    with foveate.compress(model, DyCoke(ratio=1.0, decode_ratio=0.4, layer=2, threshold=0.0)), torch.no_grad():
        cache = model(**batch).past_key_values
        after(cache, model, batch, 6)
    for entry in cache.layers[2:]:
        assert isinstance(entry.visible, LastSlots)
        assert entry.visible.take(entry.keys).data_ptr() > entry.keys.data_ptr()
        assert entry.visible.take(entry.keys).untyped_storage().data_ptr() == entry.keys.untyped_storage().data_ptr()
    assert len({id(entry.kv) for entry in cache.layers[2:]}) == 1
