"""Text sees an image through its VoCo tokens alone, which are kept and serve other prompts; how many an image gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, generate, modern, text_of
from refusals import refused
from torch import Tensor

import foveate
from foveate import AdaptiveVoCo, FastV, Memory, ToMe, VoCoLLaMA
from foveate.errors import ConfigError, InputError, UnsupportedModelError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.training.relaxed import Relaxed, Tape

MANY = VoCoLLaMA(keep=0.2)
METHODS = [MANY, AdaptiveVoCo(keep=0.2)]
#: those whose language model may hold more tokens than the prompt has, in attention alone
READERS = [family for family in tiny.STRUCTURES if not tiny.slides(family) and family not in tiny.RECURRENT]


def without_pixels(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if not name.startswith("pixel_values")}


# -- a memory -----------------------------------------------------------------------------------------------------------


@modern
@pytest.mark.parametrize("family", READERS)
def test_a_memory_stands_for_its_image_in_any_prompt(family: str, tmp_path: Path) -> None:
    """Read in one prompt, saved, and asked about on another handle in a batch of other lengths, with beams."""
    model, other = tiny.model(family), tiny.model(family, fresh=True)
    batch, again = (
        tiny.inputs(family, [[3, "image", 5, "image"], [2, "image", 4]]),
        tiny.inputs(family, [[7, "image", 2, "image", 6], [1, "image", 9]]),
    )
    again |= {name: value for name, value in batch.items() if name.startswith("pixel_values")}
    text = text_of(family, again)
    with torch.no_grad(), foveate.compress(model, MANY) as handle:
        expected, beams = model(**again).logits[text], generate(model, again, num_beams=2)
        handle.encode(batch).save(tmp_path / "read")
    memory = Memory.load(tmp_path / "read")
    assert sum(memory.counts) == sum(part.shape[1] for part in memory.stored) > 0
    given = {**without_pixels(again), "memory": memory}
    with torch.no_grad(), foveate.compress(other, MANY) as handle:
        close(other(**given).logits[text], expected)
        visits = handle.report().visits
        assert torch.equal(generate(other, given, num_beams=2), beams)
    assert visits[0].says == f"{sum(memory.counts)} tokens recalled"


@modern
@pytest.mark.parametrize("method", [*METHODS, ToMe(keep=0.6) + MANY], ids=lambda method: method.name())
def test_one_memory_serves_prompts_and_turns(method: foveate.Method) -> None:
    """Several memories in an order of their own, in chunks, and in a later turn on the cache of an earlier one."""
    model = tiny.model("llava")
    each = [tiny.inputs("llava", [[1, "image", 1]], seed=seed) for seed in (1, 2)]
    both = tiny.inputs("llava", [[3, "image", 2, "image", 4]])
    with torch.no_grad(), foveate.compress(model, method) as handle:
        memories = [handle.encode(batch) for batch in each]
        for a, b in ((0, 1), (1, 0), (0, 0)):
            seen = {**both, "pixel_values": torch.cat([each[i]["pixel_values"] for i in (a, b)])}
            given = {**without_pixels(both), "memory": [memories[a], memories[b]]}
            text = text_of("llava", both)
            close(model(**given).logits[text], model(**seen).logits[text])
            assert torch.equal(generate(model, given), generate(model, seen))
        assert torch.equal(generate(model, given, prefill_chunk_size=11), generate(model, given))
        first, cache = each[0], None
        for turn in (memories[0], memories[1]):
            length = 0 if cache is None else cache.get_seq_length()
            ids = first["input_ids"]
            mask = torch.ones(1, length + ids.shape[1], dtype=torch.long)
            out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, memory=turn)
            cache = out.past_key_values
        whole = {"input_ids": torch.cat([first["input_ids"]] * 2, 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        whole["pixel_values"] = torch.cat([batch["pixel_values"] for batch in each])
        close(out.logits[0, -1], model(**whole).logits[0, -1])


def test_text_knows_an_image_by_its_voco_tokens_alone() -> None:
    """What is done to the image in the last layer alone reaches no text; what is done to VoCo tokens there does."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    text, last = text_of("llava", batch), tiny.lm(model).layers[-1]
    stock = model(**batch).logits[text]
    with torch.no_grad(), foveate.compress(model, MANY) as handle:
        before, runtime = model(**batch).logits[text], handle._runtime
        assert runtime is not None
        found = []
        for appended in (False, True):

            def spoil(module: Any, args: Any, kwargs: Any, appended: bool = appended) -> Any:
                layout = runtime.context.decoder.layout  # type: ignore[union-attr]
                x = args[0] if args else kwargs["hidden_states"]
                rows = layout.rows(x)
                rows = torch.where((layout.tokens.appended == appended)[:, None], rows.flip(-1) + 1, rows)
                return (layout.put(x, rows), *args[1:]) if args else args, {**kwargs}

            hook = last.register_forward_pre_hook(spoil, with_kwargs=True)
            found.append(model(**batch).logits[text])
            hook.remove()
    assert not torch.allclose(before, stock, atol=1e-2)
    close(found[0], before, 1e-6)
    assert not torch.allclose(found[1], before, atol=1e-2)


@modern
def test_what_no_memory_can_be_of_is_refused() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    text = without_pixels(batch)
    with foveate.compress(model, MANY) as handle:
        memory = handle.encode(batch)
        assert repr(memory).startswith(f"<Memory of 1 image: {memory.counts[0]} tokens in place of 36, ")
        with pytest.raises(InputError, match="vocollama keeps what the language model makes"):
            handle.encode({"pixel_values": batch["pixel_values"]})
    for method in (VoCoLLaMA(keep=0.5), FastV()):
        with foveate.compress(model, method), pytest.raises(InputError, match=r"this memory was made with VoCoLLaMA\("):
            model(**text, memory=memory)
    trained = foveate.compress(model, MANY)
    with torch.no_grad():
        trained.modules["vocollama"]["voco"].weight.add_(1.0)
    with trained, pytest.raises(InputError, match="projector or learned parts have other weights"):
        model(**text, memory=memory)
    with foveate.compress(model, MANY + FastV()) as handle:
        for call in (lambda: handle.encode(batch), lambda: model(**text, memory=memory)):
            with pytest.raises(UnsupportedModelError, match="with vocollama, and fastv would change that"):
                call()
    with (
        foveate.compress(model, VoCoLLaMA(keep=0.2, positions="renumber")) as handle,
        pytest.raises(UnsupportedModelError, match="numbers text by the tokens that are there"),
    ):
        handle.encode(batch)
    hybrid = tiny.model("qwen3_5")
    with (
        foveate.compress(hybrid, VoCoLLaMA(ratio=0.2)) as handle,
        pytest.raises(UnsupportedModelError, match="carry a state from token to token, in which all of an image is"),
    ):
        handle.encode(tiny.inputs("qwen3_5", [[3, "image", 5]]))
    refused(
        tiny.model("gemma3"),
        VoCoLLaMA(ratio=0.2),
        UnsupportedSiteError,
        "vocollama appends tokens, and a sliding layer",
    )


# -- how many -----------------------------------------------------------------------------------------------------------


def test_how_many_an_image_has() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5, "image"]])
    for method, n in ((VoCoLLaMA(), 1), (MANY, 7), (VoCoLLaMA(keep=1.0), 36), (VoCoLLaMA(keep=0.0), 0)):
        with torch.no_grad(), foveate.compress(model, method) as handle:
            cache = model(**batch).past_key_values
            assert cache.layers[2].keys.shape[2] == batch["input_ids"].shape[1] - 2 * (36 - n)
            assert handle.report().shares["cache"] == pytest.approx(n / 36)


@pytest.mark.parametrize(("moves", "n"), [(-9.0, 2), (0.0, 7), (9.0, 28)])
def test_the_rate_decides_how_many(moves: float, n: int) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5, "image"]])
    with torch.no_grad(), foveate.compress(model, AdaptiveVoCo(keep=0.2)) as handle:
        handle.modules["adaptivevoco"]["rate"].bias.fill_(moves)
        model(**batch)
        assert handle.report().visits[0].says == f"{2 * n} tokens appended"


def test_in_training_all_come_and_fade() -> None:
    """The mean of the gates is the budget when it begins, and the hard choice has what gates above a half are at."""
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", ROWS["qwen2_5_vl"])
    method, tape = AdaptiveVoCo(keep=0.25), Tape()
    parts = method.modules(host_of(model))
    with torch.no_grad(), foveate.compress(model, method):
        hard = model(**batch).logits[text_of("qwen2_5_vl", batch)]
    soft = Relaxed.of(method, parts, method.stages[0], host_of(model), tape)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with foveate.compress(model, soft) as handle:
            found = model(**batch).logits[text_of("qwen2_5_vl", batch)]
            shares = handle.report().visits[0].says
    (note,) = tape.notes
    assert shares == f"{sum(note.counts)} tokens appended"
    assert note.counts == tuple(4 * n for n in note.budget)
    assert note.kept == note.budget
    assert float(note.gates.sum()) == pytest.approx(sum(note.budget), rel=0.15)
    assert float(note.agreement) > 0.75
    assert found.shape == hard.shape


def test_options() -> None:
    with pytest.raises(ConfigError, match="most=0: give a whole number from 1 on"):
        AdaptiveVoCo(most=0)
