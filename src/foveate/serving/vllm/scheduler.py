"""The seam in vLLM's scheduler: what workers are told of images, which pieces of a prompt they get, and which blocks.

One constructor is wrapped; what it adds is of that scheduler alone, and of one whose model has a method.
"""

from __future__ import annotations

import functools
from typing import Any

from foveate.serving.vllm.settings import is_served, settings_of


def watch_schedulers() -> None:
    """Wrap the scheduler's constructor, once in a process."""
    from vllm.v1.core.sched.scheduler import Scheduler

    stock = Scheduler.__init__
    if hasattr(stock, "foveate"):
        return

    @functools.wraps(stock)
    def knowing(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, vllm_config, *args, **kwargs)
        model = vllm_config.model_config
        if not is_served(model):
            return
        # Stock vLLM sends nothing of an image whose keys are in the prefix cache, unless the model has M-RoPE positions, for
        # which it sends the fields on the host (grids, sizes). Here they say where tokens are, whatever the positions.
        self.model_uses_mrope = True
        if settings_of(model).plan.layers:
            _whole_images(self)
            _own_blocks(self, model)

    knowing.foveate = True  # type: ignore[attr-defined]
    Scheduler.__init__ = knowing


def _whole_images(scheduler: Any) -> None:
    """Also of an image at which a piece of a prompt begins: ``disable_chunked_mm_input`` sees to later ones only."""
    stock = scheduler._try_schedule_encoder_inputs

    def whole(request: Any, computed: int, new: int, budget: int, *args: Any, **options: Any) -> Any:
        ranges = [feature.mm_position for feature in request.mm_features or ()]
        if any(computed == each.offset and computed + new < each.offset + each.length for each in ranges):
            return [], 0, budget, [], []  # wait for a step with room for it
        return stock(request, computed, new, budget, *args, **options)

    scheduler._try_schedule_encoder_inputs = whole


def _own_blocks(scheduler: Any, model: Any) -> None:
    from foveate.serving.vllm.cache import share_prompts, share_text
    from foveate.serving.vllm.prompt import Prompt

    settings = settings_of(model)

    def read(request: Any) -> Prompt:
        return Prompt.read(settings.plan, settings.engine, model.hf_config, request.mm_features)

    share_prompts(scheduler.kv_cache_manager, read)
    share_text(scheduler.kv_cache_manager)
