"""The seam in vLLM's scheduler: what is known of an image reaches the workers of every request.

Stock vLLM sends nothing of an image whose keys are in the prefix cache, unless the model has M-RoPE positions, for which it
sends the fields on the host (grids, sizes). Here they say where tokens are, whatever the positions.
"""

from __future__ import annotations

import functools
from typing import Any


def watch_schedulers() -> None:
    """Wrap the scheduler's constructor, once in a process."""
    from vllm.v1.core.sched.scheduler import Scheduler

    stock = Scheduler.__init__
    if hasattr(stock, "foveate"):
        return

    @functools.wraps(stock)
    def knowing(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        from foveate.serving.vllm.settings import is_served

        stock(self, vllm_config, *args, **kwargs)
        self.model_uses_mrope |= is_served(vllm_config.model_config)

    knowing.foveate = True  # type: ignore[attr-defined]
    Scheduler.__init__ = knowing
