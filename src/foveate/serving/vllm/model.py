"""A model class of vLLM with a method: the stock class, and in front of it what is different."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.serving.vllm.attached import Attached
from foveate.serving.vllm.engine import PREFIX, Engine
from foveate.serving.vllm.processor import Shortener
from foveate.serving.vllm.prompt import CHOICE, INSIDE, choice_of
from foveate.serving.vllm.settings import settings_of


class Foveated:
    """What comes before a stock class.

    Attributes:
        foveate: the method on this model.
    """

    foveate_engine: Engine

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        uses_mrope = vllm_config.model_config.uses_mrope
        mrope = super().get_mrope_input_positions if uses_mrope else None  # type: ignore[misc]
        self.foveate = Attached(self, self.foveate_engine, vllm_config, mrope)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features of each image or video, fewer and with columns."""
        ids = kwargs.pop(INSIDE, ())
        choice = choice_of(kwargs, self.foveate.plan)
        kwargs.pop(CHOICE, None)
        return self.foveate.vision(super().embed_multimodal, kwargs, choice, ids)  # type: ignore[misc]

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Sequence[Tensor] | None = None, *, is_multimodal: Any = None
    ) -> Any:
        """Embeddings of the text, features in their places."""
        features = self.foveate.arrive(multimodal_embeddings, is_multimodal)
        return super().embed_input_ids(input_ids, features, is_multimodal=is_multimodal)  # type: ignore[misc]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> Any:
        """Positions of the text as if nothing was missing; features get theirs when they arrive."""
        return self.foveate.positions(input_tokens, mm_features)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The language model."""
        step = self.foveate.step
        if step is not None and step.within and self.foveate.plan.layers and inputs_embeds is not None:
            added = self.foveate.engine.added(self, len(inputs_embeds))
            return self.foveate.inner(step, positions, inputs_embeds, added)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]


class _Factories:
    """What makes processors for a class: the stock one's, for shorter prompts."""

    def __init__(self, stock: Any, engine: Engine) -> None:
        self._stock, self._engine = stock, engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def build_processor(self, ctx: Any, **options: Any) -> Any:
        processor = self._stock.build_processor(ctx, **options)
        config = ctx.model_config
        Shortener(
            processor, settings_of(config).plan, lambda *item: self._engine.shape(config.hf_config, *item), config
        )
        return processor


def foveated(engine: Engine) -> type[Any]:
    """Return the class for an architecture."""
    module, name = engine.stock.split(":")
    stock = getattr(importlib.import_module(module), name)
    own = {
        "foveate_engine": engine,
        "_processor_factory": _Factories(stock._processor_factory, engine),
        "__module__": __name__,
        "__doc__": f"{name} of vLLM with a method.",
    }
    return type(f"{PREFIX}{name}", (Foveated, stock), own)


def __getattr__(name: str) -> Any:
    """``Foveated<architecture>``, made when it is asked for: vLLM imports model classes by name, and few of them."""
    from foveate.serving.vllm.families import engines

    engine = engines().get(name.removeprefix(PREFIX))
    if engine is None or not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    cls = globals()[name] = foveated(engine)
    return cls
