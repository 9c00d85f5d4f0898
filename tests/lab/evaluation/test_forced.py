"""The comparison of two runs, against runs written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from foveate import VTW, DivPrune, DyCoke, FastV, Method, Stride, compress
from foveate.lab.asker import Asker
from foveate.lab.evaluation.forced import Said, asked, divergence, hear, say
from foveate.lab.evaluation.questions import Prompt, of_benchmark
from foveate.lab.terminal import CommandError
from foveate_reference.data import samples


def prompts(subject: Asker, *tasks: str, per_task: int = 1) -> list[Prompt]:
    return of_benchmark(samples("test", tasks=tasks, per_task=per_task), subject.side)


@contextmanager
def talkative(subject: Asker) -> Iterator[None]:
    """Answers of the reference models end after a word: here they go on."""
    config = subject.model.generation_config
    end, config.eos_token_id = config.eos_token_id, None
    try:
        yield
    finally:
        config.eos_token_id = end


def by_hand(subject: Asker, said: Said, method: Method | None) -> Any:
    """Next-token log-probabilities ``(N, V)`` of one prompt in float64, from a single forward pass without a cache."""
    ids = torch.cat([said.inputs["input_ids"], said.tokens], dim=1)
    added = torch.zeros_like(said.tokens)
    rest = {key: value for key, value in said.inputs.items() if key not in ("input_ids", "attention_mask")}
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in rest:
            rest[key] = torch.cat([rest[key], added], dim=1)
    handle = None if method is None else compress(subject.model, method)
    try:
        with torch.inference_mode():
            logits = (
                subject.model(input_ids=ids, attention_mask=torch.ones_like(ids), **rest).logits[0].double().numpy()
            )
    finally:
        if handle is not None:
            handle.remove()
    start = said.inputs["input_ids"].shape[1]
    here = logits[start - 1 : start - 1 + said.tokens.shape[1]]
    return here - np.log(np.exp(here).sum(-1, keepdims=True))


@pytest.mark.parametrize("method", [Stride(keep=0.3), DivPrune(keep=0.2), VTW(layer=4)], ids=repr)
def test_kl_is_that_of_full_forwards(subject: Asker, method: Method) -> None:
    with talkative(subject):
        said = asked(subject, prompts(subject, "word"), 6)
        (heard,) = hear(subject.model, method, said)
    assert len(heard.kl) == len(heard.agree) == 6
    p, q = by_hand(subject, said, None), by_hand(subject, said, method)
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert kl.max() > 1e-4, "a method that changes something"
    assert heard.kl == pytest.approx(kl, rel=1e-3, abs=1e-6)
    assert heard.agree == list(p.argmax(-1) == q.argmax(-1))
    assert said.tokens[0].tolist() == p.argmax(-1).tolist(), "the stock model's likeliest"


def test_what_changes_nothing_is_nothing(subject: Asker) -> None:
    said = asked(subject, prompts(subject, "color", "pair"), 4)
    for heard in hear(subject.model, FastV(ratio=1.0), said):
        assert set(heard.kl) == {0.0}
        assert all(heard.agree)
        assert heard.cost is not None
        assert heard.cost.of("tokens")[0] == heard.cost.of("tokens")[1]


def test_an_answer_has_its_end_and_nothing_after_it(subject: Asker) -> None:
    said = asked(subject, prompts(subject, "color", "where"), 4)
    assert said.lengths == (2, 2)
    end = subject.model.generation_config.eos_token_id
    assert said.tokens[:, 1].tolist() == [end, end]
    assert [len(heard.kl) for heard in hear(subject.model, Stride(), said)] == [2, 2]


def generated(subject: Asker, said: Said, method: Method) -> list[list[int]]:
    start = said.inputs["input_ids"].shape[1]
    with compress(subject.model, method):
        out = subject.model.generate(**said.inputs, max_new_tokens=said.tokens.shape[1], do_sample=False)
    return [row[start:].tolist() for row in out]


def test_same_answer_is_what_generate_says(subject: Asker) -> None:
    """Where both agree on every token, the answers are the same; else not."""
    found = []
    with talkative(subject):
        said = asked(subject, prompts(subject, "color", "read", "count", "table"), 3)
        for method in (VTW(layer=2), Stride(keep=0.3), FastV(ratio=0.3, layer=3)):
            free = generated(subject, said, method)
            for heard, mine, stocks in zip(hear(subject.model, method, said), free, said.tokens.tolist()):
                assert all(heard.agree) == (mine == stocks)
                found.append(all(heard.agree))
    assert {True, False} == set(found)


@pytest.mark.parametrize("method", [FastV(ratio=0.4, layer=3), DyCoke()], ids=repr)
def test_a_batch_is_each_alone(subject: Asker, method: Method) -> None:
    """FastV looks at the last token of a prompt, which the answer must not become; DyCoke acts while it is written."""
    mixed = prompts(subject, "color", "pair")
    with talkative(subject):
        together = hear(subject.model, method, asked(subject, mixed, 4))
        for prompt, one in zip(mixed, together):
            (alone,) = hear(subject.model, method, asked(subject, [prompt], 4))
            assert alone.answer == one.answer
            assert alone.kl == pytest.approx(one.kl, rel=1e-2, abs=1e-5)


def test_plain_greedy_search_whatever_the_generation_config_says(qwen: Asker) -> None:
    with talkative(qwen):
        plain = asked(qwen, prompts(qwen, "color"), 4)
        config = qwen.model.generation_config
        config.repetition_penalty, config.suppress_tokens = 9.0, [int(plain.tokens[0, 0])]
        try:
            again = asked(qwen, prompts(qwen, "color"), 4)
            assert qwen.model.generation_config is config
        finally:
            config.repetition_penalty, config.suppress_tokens = None, None
    assert torch.equal(plain.tokens, again.tokens)
    assert torch.equal(plain.logp, again.logp)


def test_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 50, generator=generator).log_softmax(-1) for _ in range(2))
    wanted = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=each) for each in (p, q)))
    assert torch.allclose(divergence(p, q), wanted, atol=1e-6)
    assert divergence(p, p).tolist() == [0.0, 0.0, 0.0]
    banned = torch.tensor([0.5, 0.5, 0.0]).log()
    assert divergence(banned, torch.tensor([0.25, 0.75, 0.0]).log()).item() == pytest.approx(0.1438, abs=1e-4)
    assert divergence(banned, torch.tensor([0.5, 0.0, 0.5]).log()).item() == float("inf")
    assert divergence(banned, torch.full((3,), torch.nan)).isnan()


def test_probabilities_that_are_no_numbers(qwen: Asker) -> None:
    said = asked(qwen, prompts(qwen, "color"), 2)
    head = qwen.model.lm_head.register_forward_hook(lambda module, given, out: out * float("nan"))
    try:
        with pytest.raises(CommandError, match="not finite numbers with stride or without: try --dtype bfloat16"):
            hear(qwen.model, Stride(), said)
    finally:
        head.remove()


@pytest.mark.parametrize("kind", tiny.STRUCTURES)
def test_every_kind_of_family(kind: str) -> None:
    model, tokenizer = tiny.model(kind), tiny.processor(kind).tokenizer
    inputs = tiny.inputs(kind, [["image", 5], [3, "image", 2]])
    said = say(model, tokenizer, inputs, ("a", "b"), 3)
    for heard in hear(model, Stride(keep=1.0), said):
        assert set(heard.kl) == {0.0}
    (first, second) = hear(model, Stride(keep=0.3), said)
    assert first.cost is not None
    assert sum(first.kl) > 0
    assert sum(second.kl) > 0
    assert first.cost.of("tokens")[0] < 0.5 * first.cost.of("tokens")[1]
