"""The vLLM plugin (entry-point group ``vllm.general_plugins``): silent unless the engine is configured for foveate.

vLLM calls `register` in every process. It adds a look at ``additional_config``; nothing else is touched, and nothing heavy is
imported, unless ``"foveate"`` is a key of it.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from foveate.errors import UnsupportedModelError

#: minor versions that the tests run against; the seams are private, so others are refused
SUPPORTED = ("0.32",)

logger = logging.getLogger("vllm.foveate")


def register() -> None:
    """Called by vLLM, perhaps more than once."""
    from vllm.config import VllmConfig

    stock = VllmConfig.__post_init__
    if hasattr(stock, "foveate"):
        return

    @functools.wraps(stock)
    def configured(self: Any) -> None:
        asked = isinstance(self.additional_config, dict) and "foveate" in self.additional_config
        model = self.model_config
        mine = asked and model is not None and not model.is_submodel_config
        if mine:
            check_version()
            from foveate.serving.vllm.configure import configure, v1_runner
            from foveate.serving.vllm.settings import is_served, settings_of

            v1_runner()
        stock(self)
        if mine and not is_served(model):
            configure(self)
            found = settings_of(model)
            logger.info("foveate serves %s with %s", found.architecture, found.plan)

    configured.foveate = True  # type: ignore[attr-defined]
    VllmConfig.__post_init__ = configured


def check_version() -> None:
    """Raise `UnsupportedModelError` unless this is a vLLM that was tested."""
    import vllm

    found = vllm.__version__
    if not any(found == minor or found.startswith(f"{minor}.") for minor in SUPPORTED):
        raise UnsupportedModelError(
            f"foveate serves in vLLM {', '.join(f'{minor}.x' for minor in SUPPORTED)}, and this is {found}: install one of them"
        )
