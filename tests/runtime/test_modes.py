"""Every way to generate: with nothing removed each is stock's to the bit, and whatever is removed, a batch is its rows."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from calls import HANDS_OVER_FEATURES, ROWS, chunks, close
from plans import PLANS

import foveate

FAMILIES = ("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl")
every = pytest.mark.parametrize("family", FAMILIES)
NEVER = [[i] for i in range(len(tiny.SPECIAL))]

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": dict(use_cache=False),
    "sampling": dict(do_sample=True, temperature=0.7, top_p=0.9),
    "several sequences": dict(do_sample=True, top_k=20, num_return_sequences=3),
    "beams": dict(num_beams=3, num_return_sequences=2),
    "sampled beams": dict(num_beams=2, do_sample=True),
    "penalties": dict(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=3),
    "chunks": dict(prefill_chunk_size=11),
    "states": dict(output_hidden_states=True, output_attentions=True),
}
LONE = {"prompt lookup": dict(prompt_lookup_num_tokens=3)}  # one row at a time
FULL = {
    "luvc": foveate.LUVC(keep=1.0),
    "ipcv+fastv+dycoke": foveate.IPCV(ratio=1.0)
    + foveate.FastV(ratio=1.0)
    + foveate.DyCoke(ratio=1.0, decode_ratio=1.0),
    "renumber": foveate.Stride(ratio=1.0, layers=(0, 2), positions="renumber"),
}


def leaves_to_the_matrix(family: str, mode: str = "", full: str = "", plan: str = "", name: str = "") -> bool:
    """`make test` asks two families, and every mode once with nothing removed; probes generate on the others, too."""
    rank = [*MODES, *LONE].index(mode) + list(FULL).index(full) if full else 0
    return family not in tiny.WHOLE or rank % len(FULL) > 0


def answer(model: Any, batch: dict[str, Any], mode: dict[str, Any]) -> Any:
    """What ``generate`` returns, with a seed of its own."""
    torch.manual_seed(3)
    options = dict(max_new_tokens=5, do_sample=False, bad_words_ids=NEVER, output_logits=True)
    return model.generate(**batch, return_dict_in_generate=True, **options | mode)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["tome", "fastv", "luvc"])
def test_what_single_layers_give(family: str, name: str) -> None:
    """As `docs/concepts.md` has it under *What comes out*."""
    model, batch = tiny.model(family, "eager"), tiny.inputs(family, ROWS[family])
    visual = tiny.visual_mask(family, batch)
    with torch.no_grad(), foveate.compress(model, name, keep=0.5):
        out: Any = model(**batch, output_hidden_states=True, output_attentions=True)
    first, last = out.hidden_states[0], out.hidden_states[-1]
    held = [attention.shape[-1] for attention in tiny.of_attention(family, out.attentions)]
    cached = [entry.keys.shape[2] for entry in tiny.entries(out.past_key_values)]
    assert [tuple(each.shape[1:3]) for each in out.hidden_states] == [
        (length, first.shape[-1]) for length in (visual.shape[1], *held[:-1], visual.shape[1])
    ]
    assert cached == held
    assert held[-1] < visual.shape[1] == out.past_key_values.get_seq_length() == out.logits.shape[1]
    gone, hole = ((each == 0).all(-1) for each in (last, first))
    assert (gone & visual).any()
    assert (gone & ~visual).equal(batch["attention_mask"] == 0)
    assert not out.logits[gone].any()
    assert hole.any() == (name != "fastv")
    assert not (hole & ~visual).any()
    if name == "luvc":
        assert (gone & visual).equal(visual)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b)


def skip_what_stock_cannot(family: str, mode: str) -> None:
    if mode == "chunks" and chunks.args[0]:
        pytest.skip(chunks.kwargs["reason"])
    expands = mode in ("several sequences", "beams", "sampled beams")
    if expands and not HANDS_OVER_FEATURES and family in tiny.tiles.FAMILIES:
        pytest.skip("this transformers repeats tiles, not images")


@every
@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize("mode", [*MODES, *LONE])
def test_with_nothing_removed_it_is_stock(family: str, full: str, mode: str) -> None:
    skip_what_stock_cannot(family, mode)
    impl = "eager" if mode == "states" else "sdpa"
    model, rows = tiny.model(family, impl), ROWS[family][:1] if mode in LONE else ROWS[family]
    batch = tiny.inputs(family, rows)
    with torch.no_grad():
        stock = answer(model, batch, (MODES | LONE)[mode])
        with foveate.compress(model, FULL[full]):
            ours = answer(model, batch, (MODES | LONE)[mode])
    assert set(ours) == set(stock)
    for name in stock:
        assert same(ours[name], stock[name]), name


@every
@pytest.mark.parametrize("plan", ["cascade", "tome", "adsc", "luvc"])
@pytest.mark.parametrize("mode", ["without a cache", "penalties", "beams"])
def test_a_batch_is_its_rows(family: str, plan: str, mode: str) -> None:
    skip_what_stock_cannot(family, mode)
    model, rows = tiny.model(family), ROWS[family]
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together = answer(model, tiny.inputs(family, rows), MODES[mode]).sequences
        each = len(together) // len(rows)
        for i in range(len(rows)):
            alone = answer(model, tiny.inputs(family, rows, only=i), MODES[mode]).sequences
            assert torch.equal(alone[:, -5:], together[i * each : (i + 1) * each, -5:])


@every
@pytest.mark.parametrize("plan", ["cascade", "tome", "adsc", "luvc", "ipcv", "renumber", "native"])
def test_without_a_cache_is_with_one(family: str, plan: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        cached, plain = (answer(model, batch, dict(use_cache=use)) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    for a, b in zip(cached.logits, plain.logits, strict=True):
        close(a, b)


@every
@pytest.mark.parametrize("plan", ["stride", "tome", "luvc", "adsc"])
def test_sampled_logits_are_those_of_the_text(family: str, plan: str) -> None:
    """What was drawn, given to one full forward, has the logits that it was drawn from."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        out = answer(model, batch, MODES["sampling"])
        longer = dict(batch, input_ids=out.sequences)
        for name in ("attention_mask", "mm_token_type_ids"):
            if name in batch:
                longer[name] = torch.nn.functional.pad(batch[name], (0, 5), value=int(name == "attention_mask"))
        full = model(**longer).logits[:, -6:-1]
    for step, logits in enumerate(out.logits):
        close(logits, full[:, step])
