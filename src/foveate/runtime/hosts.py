"""What a method may know about a model: read off the model, or off its config alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from foveate.errors import UnsupportedModelError
from foveate.method import Host
from foveate.models.family import Family
from foveate.runtime.shared import own, sources_of


def base_of(model: nn.Module, family: Family) -> nn.Module:
    """Return the module whose forward joins vision and text."""
    try:
        return model.get_submodule(family.base)
    except AttributeError:
        raise UnsupportedModelError(
            f"{type(model).__name__} is a part of a {family.model_type!r} model: give the whole one, with its language-model "
            "head (AutoModelForImageTextToText)"
        ) from None


def kinds_of(config: Any) -> Sequence[str]:
    """Return the kind of attention of every decoder layer, where the config says so."""
    return getattr(config.get_text_config(), "layer_types", None) or ()


def host_of(model: Any, family: Family) -> Host:
    """Return what a method may know about a model."""
    base = base_of(model, family)
    decoder: Any = base.get_submodule(family.decoder.module)
    layers: Any = decoder.get_submodule(family.decoder.layers)
    host = host_with(family, model.config, own(sources_of(layers, family.decoder, decoder.config)), len(layers))
    tower, merger, unit = family.tower, family.tower.merger, family.tower.unit(model.config)
    blocks = tower.blocks_of(base.get_submodule(tower.module))
    norms: list[Any] = [block.get_submodule(tower.mid_norm) for block in blocks[:1]]
    patch: int = norms[0].weight.shape[-1] if norms else 0
    merged = unit if merger is None else unit // merger.rows(model.config)
    host = host if family.denoising is None else replace(host, steps=family.denoising.steps(model))
    source = str(getattr(model.config, "_name_or_path", None) or "")
    host = replace(host, width=decoder.config.hidden_size, tower_width=patch * unit, source=source)
    return replace(host, output_width=patch * merged, output_rows=merged)


def host_with(family: Family, config: Any, layers: int, depth: int = 0) -> Host:
    """The same of a model that is not there, but its config is; its decoder has ``layers`` with keys of their own.

    In all there are ``depth``; 0: no others.
    """
    blocks = family.tower.last_block(config) + 1
    frames = family.frames if family.takes_videos else frozenset()
    fixed = tuple(i for i, kind in enumerate(kinds_of(config)) if kind.startswith(("sliding", "linear", "conv")))
    steps = 0 if family.denoising is None else family.denoising.steps(config)
    cached = family.denoising is not None and bool(family.denoising.canvas)
    cls = family.tower.leading > 0
    return Host(
        family.name, blocks, layers, cls, frames, depth=depth, steps=steps, reads_cache=cached, fixed_caches=fixed
    )
