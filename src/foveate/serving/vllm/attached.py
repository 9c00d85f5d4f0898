"""The method on one model of vLLM: its vision side, where its prompts' tokens are, and what arrives in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.multimodal.inputs import PlaceholderRange

from foveate.serving.vllm.columns import Columns
from foveate.serving.vllm.engine import Engine
from foveate.serving.vllm.inner import Inner
from foveate.serving.vllm.prompt import Placed, Prompt
from foveate.serving.vllm.rope import lengthen
from foveate.serving.vllm.runner import watch_runners
from foveate.serving.vllm.settings import has_groups, settings_of
from foveate.serving.vllm.step import Batch, Step
from foveate.serving.vllm.vision import Vision

Positions = tuple[Tensor, int]
Mrope = Callable[..., Positions]


class Attached:
    """Made by the model's constructor.

    Args:
        vllm_config: of the engine.
        mrope: the stock model's function for M-RoPE positions, if it has one.

    Attributes:
        vision: encodes images.
        inner: runs the language model in steps in which tokens leave inside it.
        step: of the engine, from when it is laid out until its forward has ended; else None.
    """

    def __init__(self, model: Any, engine: Engine, vllm_config: Any, mrope: Mrope | None) -> None:
        self.engine, self.config, self.mrope = engine, model.config, mrope
        self.plan = settings_of(vllm_config.model_config).plan
        self.vision = Vision(model, engine, self.plan)
        decoder = model.get_submodule(engine.decoder)
        self.inner = Inner(decoder, self.plan, has_groups(vllm_config))
        self.step: Step | None = None
        self._batch: Batch | None = None
        lengthen(decoder, vllm_config.model_config.max_model_len)
        watch_runners()

    def arrive(self, features: Sequence[Tensor] | None, is_multimodal: Tensor | None) -> list[Tensor] | None:
        """Take the columns off the features that arrive in a step, which notes them."""
        if not features:
            return None
        whole, columns = Columns.split(torch.cat(list(features)))
        if self.step is not None and is_multimodal is not None:
            self.step.arrived = columns, is_multimodal.nonzero().flatten()
        return list(whole.split([len(each) for each in features]))

    def batch_of(self, requests: list[Any]) -> Batch:
        """Tell what is the same in every step of these requests; kept until others are there."""
        if self._batch is None or not self._batch.still(requests):
            self._batch = Batch(requests, [self.prompt(request) for request in requests])
        return self._batch

    def prompt(self, request: Any) -> Prompt:
        """Tell where the tokens of a request are; kept with it."""
        n, known = getattr(request, "foveate", (-1, None))
        if known is None or n != len(request.mm_features):
            known = self._prompt(request.prompt_token_ids, request.mm_features)
            request.foveate = (len(request.mm_features), known)
        return known

    def _prompt(self, tokens: Sequence[int], features: Sequence[Any]) -> Prompt:
        prompt = Prompt.read(self.plan, self.engine, self.config, features)
        if self.mrope is not None and prompt.placed:
            whole = np.zeros(len(tokens) + int(prompt.missing[-1]), dtype=np.int64)
            whole[np.arange(len(tokens)) + prompt.missing_before(0, len(tokens))] = tokens
            for each in prompt.placed:
                whole[each.full] = tokens[each.places[0]]
            prompt.mrope = self.mrope(whole.tolist(), [_full(each) for each in prompt.placed])
        return prompt

    def positions(self, tokens: Sequence[int], features: Sequence[Any]) -> Positions:
        """M-RoPE positions of a prompt as it is, ``(3, L)``, and what is added to a later place to get its position.

        Text has the positions that it would have without a method; features have that of their image's first one, and get
        their own when they arrive.
        """
        assert self.mrope is not None
        prompt = self._prompt(tokens, features)
        if prompt.mrope is None:
            return self.mrope(list(tokens), [])
        positions, delta = prompt.mrope
        places = np.arange(len(tokens)) + prompt.missing_before(0, len(tokens))
        for each in prompt.placed:
            places[each.places] = each.full[0]
        return positions[:, torch.from_numpy(places)], delta + int(prompt.missing[-1])


def _full(placed: Placed) -> Any:
    """Return what vLLM would say of an image without a method."""
    where, more = placed.feature.mm_position, len(placed.full) - len(placed.places)
    embeds = None
    if where.is_embed is not None:
        embeds = torch.zeros(where.length + more, dtype=torch.bool)
        embeds[torch.from_numpy(placed.full - placed.begin)] = True
    return replace(placed.feature, mm_position=PlaceholderRange(placed.begin, where.length + more, embeds))
