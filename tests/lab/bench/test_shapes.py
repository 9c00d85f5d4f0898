"""Shapes have the sizes of the models they are named after, and nothing is allocated to know it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate.handle import host_of
from foveate.lab.bench import memory, shapes
from foveate.lab.terminal import CommandError

#: Parameters of the published checkpoints.
PUBLISHED = {
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-8b": 8_767_123_696,
    "llava-1.5-7b": 7_063_427_072,
    "internvl3-8b": 7_944_373_760,
}
SMALL = [name for name in shapes.SHAPES if name.startswith("small-")]
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    skeleton = shapes.skeleton(name)
    assert sum(parameter.numel() for parameter in skeleton.parameters()) == PUBLISHED[name]
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}


def test_every_shape_is_published_or_small() -> None:
    assert set(shapes.SHAPES) == {*PUBLISHED, *SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_small_shapes_are_of_the_family_of_a_large_one(name: str) -> None:
    families = {host_of(shapes.skeleton(large)).family for large in PUBLISHED}
    host = host_of(shapes.skeleton(name))
    assert host.family in families
    assert host.layers == 8
    assert sum(parameter.numel() for parameter in shapes.skeleton(name).parameters()) < 40e6


def test_tower_and_language_model_share_the_work_as_in_the_large_one() -> None:
    shares = []
    for name in ("qwen2.5-vl-7b", "small-qwen2.5-vl"):
        model: Any = shapes.skeleton(name).model
        tower, text = (
            sum(p.numel() for p in part.parameters()) for part in (model.visual, model.language_model.layers)
        )
        shares.append(4 * tower / text)  # four patches are a token
    assert shares[1] == pytest.approx(shares[0], rel=0.2)


def test_the_seed_decides_the_weights() -> None:
    models = [shapes.build(shapes.qwen2_5_small(64, 1, blocks=1), torch.float32, CPU, None, seed) for seed in (0, 0, 1)]
    first, same, other = (model.get_output_embeddings().weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not models[0].training


def test_dtype_and_attention() -> None:
    model = shapes.build(shapes.qwen2_5_small(64, 1, blocks=1), torch.bfloat16, CPU, "eager", 0)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    with pytest.raises(CommandError, match="--attn 'flashy' cannot be used here"):
        shapes.build(shapes.qwen2_5_small(64, 1, blocks=1), torch.float32, CPU, "flashy", 0)


def test_what_does_not_fit_is_refused_before_it_is_built() -> None:
    skeleton = shapes.skeleton("llava-1.5-7b")
    with pytest.raises(
        CommandError, match=r"weights in float32 need 28\.3 GB and a KV cache of 1,000,000,000 tokens 1\.0 PB"
    ) as said:
        memory.check_fit("llava-1.5-7b", skeleton, 10**9, torch.float32, CPU)
    assert "GB free: choose a smaller --shape" in str(said.value)
    memory.check_fit("small-llava", shapes.skeleton("small-llava"), 1000, torch.float32, CPU)


def test_an_unknown_shape() -> None:
    with pytest.raises(CommandError, match=r"--shape 'qwen9': choose one of qwen2\.5-vl-7b, .*--model"):
        shapes.config_of("qwen9")
