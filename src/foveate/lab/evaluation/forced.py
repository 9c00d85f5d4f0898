"""Two runs of a model on the same words: the stock model answers, the compressed one is made to say the same.

Both go through `generate`, token by token, so that methods see what they see in use: the prompt ends with the prompt, and the
cache is the one that they left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from foveate.handle import attach_learned
from foveate.lab.asker import Asker, Cost
from foveate.lab.evaluation.questions import Prompt
from foveate.lab.terminal import CommandError
from foveate.method import Method
from foveate.trained import Trained


@dataclass(frozen=True)
class Heard:
    """One prompt under one method.

    Attributes:
        id: of the prompt.
        kl: KL(stock || compressed) of the next token in nats, or the reverse, at each position of the stock model's answer.
        agree: whether both find the same token likeliest there. If so at all of them, both give the same greedy answer: they
            differ first where they disagree first.
        answer: the stock model's.
        cost: of the compressed run, the mean over its batch; None: no method.
    """

    id: str
    kl: list[float]
    agree: list[bool]
    answer: str
    cost: Cost | None


@dataclass(frozen=True, eq=False)
class Said:
    """The stock model's greedy answers to a batch of prompts.

    Attributes:
        inputs: the batch.
        ids: of the prompts.
        tokens: ``(B, N)``; what follows the end of an answer is padding.
        lengths: tokens of each answer, its end included.
        logp: ``(B, N, V)`` natural logarithms of next-token probabilities in float32.
        answers: as text.
    """

    inputs: Any
    ids: tuple[str, ...]
    tokens: Tensor
    lengths: tuple[int, ...]
    logp: Tensor
    answers: tuple[str, ...]


def asked(asker: Asker, prompts: Sequence[Prompt], new_tokens: int) -> Said:
    """The stock model's answers to a batch."""
    inputs, ids = asker.prepare([prompt.chat() for prompt in prompts]), tuple(prompt.id for prompt in prompts)
    return say(asker.model, asker.processor.tokenizer, inputs, ids, new_tokens)


def say(model: Any, tokenizer: Any, inputs: Any, ids: tuple[str, ...], new_tokens: int) -> Said:
    """Ask the stock model: its likeliest tokens, up to ``new_tokens``, whatever its generation config says of sampling."""
    tokens, logp = _generate(model, inputs, new_tokens, None)
    ends = model.generation_config.eos_token_id
    last = torch.isin(tokens, torch.tensor([] if ends is None else ends, device=tokens.device, dtype=tokens.dtype))
    before = last.cumsum(1) - last.int()  # ends before each token
    lengths = tuple((before == 0).sum(1).tolist())
    answers = [
        text.strip()
        for text in tokenizer.batch_decode(
            [row[:length] for row, length in zip(tokens.tolist(), lengths)], skip_special_tokens=True
        )
    ]
    return Said(inputs, ids, tokens, lengths, logp, tuple(answers))


def hear(model: Any, method: Method, said: Said, learned: Trained | None = None, reverse: bool = False) -> list[Heard]:
    """Make the model with a method, and with what one of its kind has ``learned``, say the same, and compare.

    ``reverse``: by KL(compressed || stock).

    Raises:
        CommandError: probabilities are not numbers, as where half precision overflows.
    """
    with attach_learned(model, method, learned) as handle:
        _, logp = _generate(model, said.inputs, said.tokens.shape[1], said.tokens)
        cost = Cost.mean(handle.report(), len(said.ids))
    kl = divergence(logp, said.logp) if reverse else divergence(said.logp, logp)
    agree = said.logp.argmax(-1) == logp.argmax(-1)
    found = []
    for row, length in enumerate(said.lengths):
        here = kl[row, :length].tolist()
        if not all(value < float("inf") for value in here):
            raise CommandError(
                f"the model's probabilities for prompt {said.ids[row]!r} are not finite numbers with {method.name()} or "
                "without: try --dtype bfloat16 or float32"
            )
        found.append(Heard(said.ids[row], here, agree[row, :length].tolist(), said.answers[row], cost))
    return found


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of log-probabilities ``(..., V)``; what p excludes counts nothing."""
    terms = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0)
    terms = torch.where(p.isnan() | q.isnan(), torch.nan, terms)
    return terms.sum(-1).clamp(min=0)  # of equals, rounding may leave less than nothing


@torch.inference_mode()
def _generate(model: Any, inputs: Any, new_tokens: int, forced: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, N)`` and log-probabilities ``(B, N, V)``, those of ``forced`` if given."""
    start = inputs["input_ids"].shape[1]
    processors = LogitsProcessorList([] if forced is None else [_Forced(forced, start)])
    with _plain(model):
        out = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            logits_processor=processors,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return out.sequences[:, start:], torch.stack([step.float() for step in out.logits], dim=1).log_softmax(-1)


class _Forced(LogitsProcessor):
    """Leaves one token to choose."""

    def __init__(self, tokens: Tensor, start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        step = input_ids.shape[1] - self.start
        return torch.full_like(scores, -torch.inf).scatter(1, self.tokens[:, step : step + 1], 0.0)


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """Greedy search and nothing else: without the penalties and bans that a model's generation config may bring."""
    own = model.generation_config
    pad = own.pad_token_id
    if pad is None:
        pad = own.eos_token_id[0] if isinstance(own.eos_token_id, list) else own.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=pad)
    try:
        yield
    finally:
        model.generation_config = own
