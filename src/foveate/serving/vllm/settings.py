"""What an engine serves with: kept with the model's config, and sent with it to other processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.method import Method
from foveate.serving.plan import Plan
from foveate.serving.vllm.engine import Engine
from foveate.serving.vllm.families import engines

#: where a `Settings` is kept on vLLM's ModelConfig
_PLACE = "_foveate_settings"


@dataclass(frozen=True)
class Settings:
    """What the engine serves with.

    Attributes:
        method: the method.
        architecture: stock one, of the model.
        plan: what it does, and where.
    """

    method: Method
    architecture: str
    plan: Plan

    @property
    def engine(self) -> Engine:
        """The description of the model."""
        return engines()[self.architecture]


def keep(model_config: Any, settings: Settings) -> None:
    """From now on the model is served with them."""
    setattr(model_config, _PLACE, settings)


def is_served(model_config: Any) -> bool:
    """Tell whether a model is served with a method."""
    return hasattr(model_config, _PLACE)


def settings_of(model_config: Any) -> Settings:
    """Those of a model that is served with a method."""
    found: Settings = getattr(model_config, _PLACE)
    return found


def has_groups(vllm_config: Any) -> bool:
    """Tell whether layers may have blocks of their own: who gives them out must see the grids of the images."""
    disabled: bool = vllm_config.scheduler_config.disable_hybrid_kv_cache_manager
    return not disabled and vllm_config.model_config.multimodal_config.mm_processor_cache_type != "shm"
