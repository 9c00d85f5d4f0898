"""What shares a budget and a ranking: a frame, a clip, or all images of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch
from calls import CHUNKS, close
from torch import Tensor

import foveate
from foveate import Host, Method, Site, Tokens
from foveate.errors import ConfigError, InputError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.pruners import DecoderPruner
from foveate.runtime.layout import frames, tokens_of
from foveate.schedule import Schedule
from foveate.serving.plan import make_plan
from foveate.tokens import Scope

ROWS: list[list[tiny.Item]] = [[3, "image", 5, "image", 2], [2, "image", 4]]


@dataclass(frozen=True)
class Norm(DecoderPruner):
    """Test only: keep the longest hidden states before a layer."""

    layer: int | None = None
    ratio: float | None = None

    def usual(self, host: Host) -> Schedule:
        return Schedule(((0, 0.3),))

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.hidden.float().norm(dim=-1)


@dataclass(frozen=True)
class PerFrame(Norm):
    scope: ClassVar[Scope] = "frame"


@dataclass(frozen=True)
class PerClip(Norm):
    pooled: ClassVar[bool] = True


@dataclass(frozen=True)
class PerSample(Norm):
    scope: ClassVar[Scope] = "sample"


def asked(method: Method, sizes: list[tuple[int, int, int]], rows: list[int]) -> tuple[int, ...]:
    """Survivors per span, as the runtime would ask; later tokens have longer states."""
    tokens = tokens_of(frames(sizes, rows))
    hidden = torch.arange(1.0, len(tokens) + 1)[:, None]
    tokens = Tokens(tokens.spans, tokens.counts, tokens.index, tokens.sizes, tokens.coords, hidden)
    object.__setattr__(tokens, "scope", method.scope)
    object.__setattr__(tokens, "pooled", method.pooled)
    (site,) = method.sites(Host("llava", 4, 6, True))
    return method.reduce(tokens, site).counts


def test_a_video_and_an_image_of_one_prompt() -> None:
    sizes, rows = [(4, 1, 4), (1, 2, 5)], [0, 0]  # 16 tokens in frames of 4, and 10
    assert asked(PerFrame(), sizes, rows) == (1, 1, 1, 1, 3)  # a frame rounds by itself
    assert asked(Norm(), sizes, rows) == (1, 2, 1, 1, 3)  # 4.8 of the video, spread over its frames
    assert asked(PerClip(), sizes, rows) == (0, 0, 1, 4, 3)  # and these are the best of all its frames
    assert asked(PerSample(), sizes, rows) == (0, 0, 0, 0, 8)  # 7.8 of all
    assert asked(PerSample(), sizes, [0, 1]) == (0, 0, 1, 4, 3)  # two prompts


@pytest.mark.parametrize("family", tiny.WHOLE)
@pytest.mark.parametrize("cls", [PerFrame, PerClip, PerSample])
def test_a_batch_is_each_row_alone(family: str, cls: type[Norm]) -> None:
    model = tiny.model(family)
    for layer in (0, 3):
        with torch.no_grad(), foveate.compress(model, cls(layer=layer, keep=0.7)) as handle:
            together = model(**tiny.inputs(family, ROWS)).logits
            (visit,) = handle.report().visits
            assert sum(visit.after) < sum(visit.before)
            for row in range(len(ROWS)):
                alone = tiny.inputs(family, ROWS, only=row)
                close(model(**alone).logits[0, -1], together[row, -1])


def test_all_images_of_a_prompt_share_the_budget() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with torch.no_grad(), foveate.compress(model, PerSample()) as handle:
        model(**batch)
        (visit,) = handle.report().visits
    (n,) = set(visit.before)
    first, second, third = visit.after
    assert first + second == int(2 * n * 0.3 + 0.5)
    assert third == int(n * 0.3 + 0.5)


@pytest.mark.skipif(not CHUNKS, reason="this transformers cuts no prompts with images")
@pytest.mark.parametrize("method", [PerSample(layer=1), PerClip(layer=1)], ids=lambda method: method.name())
def test_chunks_are_refused(method: Method) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS[:1])
    with torch.no_grad(), foveate.compress(model, method), pytest.raises(InputError, match="prompt comes in chunks"):
        model.generate(**batch, max_new_tokens=2, do_sample=False, prefill_chunk_size=20)


def test_where_they_cannot_be() -> None:
    @dataclass(frozen=True)
    class InTheTower(PerSample):
        def sites(self, host: Host) -> list[Site]:
            return [Site("tower", 1, 0.5)]

    model: Any = tiny.model("llava")
    with pytest.raises(UnsupportedSiteError, match="one budget for all images of a prompt"):
        foveate.compress(model, InTheTower())
    for method in (PerSample(), PerClip()):
        with pytest.raises(ConfigError, match="one ranking for all images"):
            make_plan(method, host_of(model), family_of(model.config), model.config)
