"""torch.compile: a decode step is compiled once for all tokens, and nothing compiled earlier hides what is attached later."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, generate
from torch._dynamo.testing import CompileCounter

import foveate
from foveate.errors import UnsupportedModelError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def small(family: str) -> Any:
    return tiny.build(tiny.config(family, num_hidden_layers=2))


def test_a_step_is_compiled_once_for_all_tokens() -> None:
    model, batch = small("llava"), tiny.inputs("llava", ROWS["llava"])
    counter, graphs = CompileCounter(), []
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, bad_words_ids=[[i] for i in range(9)])
    with foveate.compress(model, foveate.Stride(ratio=0.5, layers=(1,))):
        expected = model.generate(**batch, **options)
        plain, compiled = model.forward, torch.compile(model.forward, backend=counter)

        @functools.wraps(plain)
        def step(*args: Any, **kwargs: Any) -> Any:
            out = (compiled if kwargs["input_ids"].shape[1] == 1 else plain)(*args, **kwargs)
            graphs.append(counter.frame_count)
            return out

        model.forward = step
        assert torch.equal(model.generate(**batch, **options), expected)
    assert graphs[0] == 0 < graphs[1]
    assert len(set(graphs[2:])) == 1, "the second step has tensors of another length, and so have all that follow"


@pytest.mark.parametrize("rows", [3])
def test_layers_are_no_graphs_of_their_own(rows: int) -> None:
    """A deeper model has no more graphs. Compiled stock code makes masks always; they are cut inside the graph, also where rows
    hold different numbers of tokens. There are two: of the first step, in which the cache holds nothing but the prompt, and of
    all others."""
    counts = []
    for layers in (4, 6):
        torch.compiler.reset()
        model, counter = tiny.build(tiny.config("llava", num_hidden_layers=layers)), CompileCounter()
        batch = tiny.inputs("llava", ROWS["llava"][:rows])
        options: dict[str, Any] = dict(output_logits=True, return_dict_in_generate=True)
        with foveate.compress(model, foveate.Stride(ratio=0.5, layers=(1, 3))), torch.no_grad():
            expected = generate(model, batch, **options)
            plain, compiled = model.forward, torch.compile(model.forward, backend=counter, dynamic=True)
            model.forward = functools.wraps(plain)(functools.partial(_step, plain, compiled))
            out = generate(model, batch, **options)
        assert torch.equal(out.sequences, expected.sequences)
        for ours, theirs in zip(out.logits, expected.logits):
            close(ours, theirs)
        counts.append(counter.frame_count)
    assert counts == [2, 2]


def _step(plain: Any, compiled: Any, *args: Any, **kwargs: Any) -> Any:
    """One generated token goes through the compiled function."""
    return (compiled if kwargs["input_ids"].shape[1] == 1 else plain)(*args, **kwargs)


def test_what_was_compiled_before_is_compiled_anew() -> None:
    """Nothing on a model tells that a function which calls it was compiled, so all are forgotten."""
    counter = CompileCounter()
    compiled, x = torch.compile(lambda x: x + 1, backend=counter), torch.ones(2)
    compiled(x)
    compiled(x)
    assert counter.frame_count == 1
    with foveate.compress(tiny.model("llava"), "stride"):
        compiled(x)
        assert counter.frame_count == 2
    compiled(x)
    assert counter.frame_count == 2, "hooks that are gone do nothing, so graphs may stay"


def test_compiled_models_are_refused() -> None:
    """What says of itself that it is compiled."""
    model = small("llava")
    with pytest.raises(UnsupportedModelError, match="compress the plain model first"):
        foveate.compress(torch.compile(model, backend="eager"), "stride")  # type: ignore[arg-type]
    model.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="compress the plain model first"):
        foveate.compress(model, "stride")
