"""Steps of decoding are made ready where the whole model is called, so that nothing is left to do for hooks inside of it.

Most forwards bring one generated token a row to a cache, and no image. All that a method has to do then is known before the
model runs. Hooks inside would do it one by one, and torch.compile would leave its graph at each of them; those of the module
that is called are outside of the graph. Where only a part of the model is called, its own hooks do what there is to do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.runtime.cache import cache_among
from foveate.runtime.context import DecoderPass
from foveate.runtime.decoder import DecoderHooks
from foveate.runtime.hooks import Hooks
from foveate.runtime.state import States, states_in
from foveate.runtime.trace import tick

#: arguments that bring features, or embeddings in place of tokens
_BRINGS = ("inputs_embeds", "mm_encoder_outputs", "image_hidden_states")


class ReadySteps:
    """Hooks of the whole model, around the steps that it is called for."""

    def __init__(self, decoder: DecoderHooks, hooks: Hooks) -> None:
        self.decoder, self.context, self.hooks = decoder, decoder.context, hooks
        self.brings, self.heads = (*_BRINGS, *decoder.family.modalities), 0

    def attach(self, model: Any) -> None:
        """Hook the model, after whatever else changes the arguments that it is called with."""
        self.heads = int(model.get_output_embeddings() is not None)
        if model is not self.decoder.base and self.decoder.family.denoising is None:
            self.hooks.pre(model, self._begin)
            self.hooks.post(model, self._end, always=True)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, cache, context = kwargs.get("input_ids"), cache_among(kwargs.values()), self.context
        if args or cache is None or ids is None or ids.shape[1:] != (1,) or context.aside:
            return
        if any(kwargs.get(name) is not None for name in self.brings) or (context.prompt and context.prompt.spans):
            return  # (the last chunk of a prompt may be a single token)
        past = int(cache.get_seq_length())
        if not past:
            return
        context.calls.enter("model")
        if self.hooks.removed:  # while it waited
            return
        context.decoder = call = DecoderPass(len(ids), 1, past, context.trace, tick(ids.device), ready=True)
        call.states = states_in(cache) or States()
        mask = kwargs.get("attention_mask")
        self.decoder.begin(call, cache, mask if isinstance(mask, Tensor) and mask.dim() == 2 else None, brings=False)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call, context = self.context.decoder, self.context
        if call is None or not call.ready:
            return
        context.decoder = None
        self.decoder.calls.steady.leave()
        ended = None
        try:
            if output is None:  # an error is on its way
                context.tower = None
            else:
                self.decoder.end(call, output)
                call.trace.head_rows += self.heads * call.batch
                ended = call.trace
        finally:
            context.calls.leave("model", ended)
