"""The vocabulary in which a model of vLLM is described. Facts only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate.errors import UnsupportedModelError
from foveate.models.family import Family
from foveate.serving.plan import Item

#: of the names under which model classes are registered, before those of vLLM, which stay as they are
PREFIX = "Foveated"

Facts = list[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Engine:
    """A model class of vLLM.

    Attributes:
        architecture: its name in ``config.architectures``.
        stock: ``module:class``.
        family: the same model in transformers; ``variants``: with other vision towers.
        config: the config of the model -> that of transformers, which a family reads.
        shape: config, modality, processed data of an image or video, number of its features without a method -> its grids.
        facts: arguments of ``embed_multimodal`` -> modality and data for `shape`, of each item in order.
        graft: the model -> the vision side of transformers' model, made of vLLM's parts (see `graft`).
        forwards: the model, that vision side -> modules of vLLM, and what is to run when they are called.
        decoder: path of the module with the decoder layers.
        added: the model, tokens of a step -> what its decoder adds to their hidden states after layer 0, 1, ..., ``(P, C)``
            each (deepstack); whoever asks must add it, as the model has it no more.
    """

    architecture: str
    stock: str
    family: Family
    shape: Callable[[Any, str, Mapping[str, Any], int], Item]
    facts: Callable[[Mapping[str, Any]], Facts]
    graft: Callable[[Any], Any]
    forwards: Callable[[Any, Any], list[tuple[Any, Callable[..., Any]]]]
    decoder: str = "language_model.model"
    variants: tuple[Family, ...] = ()
    config: Callable[[Any], Any] = lambda config: config
    added: Callable[[Any, int], list[Tensor]] = lambda model, tokens: []

    def family_of(self, config: Any) -> Family:
        """Return the one with the vision tower of transformers' ``config``.

        Raises:
            UnsupportedModelError: there is none.
        """
        tower, families = getattr(config.vision_config, "model_type", ""), (self.family, *self.variants)
        for family in families:
            if family.tower_type in ("", tower):
                return family
        raise UnsupportedModelError(
            f"foveate does not serve {self.architecture} with a {tower!r} vision tower in vLLM; it serves it with "
            f"{' or '.join(repr(family.tower_type) for family in families)}"
        )


def rows_of(kwargs: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> Facts:
    """Facts of items that each have one row of a tensor: ``names`` are (modality, argument)."""
    found: Facts = []
    for modality, name in names:
        found += [(modality, {name: row}) for row in kwargs.get(name, ())]
    return found
