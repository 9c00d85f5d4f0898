"""Budgets by the detail of each image: what they are, and that an engine with them says what transformers says with each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_plan import item
from test_request_budgets import plan_of

from foveate import ADSC, DivPrune, Random, Reduction, Site, Tokens
from foveate.errors import FoveateError
from foveate.ops.select import top_k
from foveate.serving.budgets import SERVERS, Choice, of_picture, with_adaptive
from foveate.serving.detail import Adaptive, detail


def halves(side: int, seed: int = 0) -> Image.Image:
    """Noise on the left, nothing on the right."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels[:, side // 2 :] = 90
    return Image.fromarray(pixels)


def noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def blank(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (200, 90, 30))


def test_detail_is_the_share_of_cells_that_are_not_flat() -> None:
    assert [detail(picture(192), 0.02) for picture in (blank, halves, noise)] == [0, 0.5, 1]
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 480).astype(np.uint8), (480, 1)))
    assert detail(ramp, 0.02) == 0  # a sky
    pixels = np.asarray(halves(192))
    for same in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), pixels / 255, halves(192).resize((960, 960), 0)):
        assert detail(same, 0.02) == 0.5


def test_what_stands_still_in_a_video_is_no_detail() -> None:
    still, moving = np.stack([np.asarray(noise(192))] * 8), np.stack([np.asarray(noise(192, i)) for i in range(8)])
    assert detail((still, {"fps": 2}), 0.02) == 1 / 8
    assert detail(list(moving), 0.02) == 1
    assert detail(np.stack([np.asarray(noise(192))] * 99), 0.02) == 1 / 16  # of which as many are looked at


def test_budgets_are_steps_within_bounds() -> None:
    by = Adaptive(0.22, 0.78)
    assert [by.keep(picture(192)) for picture in (blank, halves, noise)] == [0.22, 0.5, 0.78]
    assert all(by.keep(halves(96, seed)) in by.budgets for seed in range(9))
    assert by.budgets == [0.22, *(i / 20 for i in range(5, 16)), 0.78]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (0.2, '"adaptive" is 0.2, expected an object such as'),
        ({"threshold": 0.1}, "expected an object such as"),
        ({"least": 0.2, "most": 0.5}, "expected an object such as"),
        ({"least": 0.9}, '"least" is 0.9, expected a number above 0, up to 0.8'),
        ({"least": float("nan")}, '"least" is nan'),
        ({"least": True}, '"least" is True'),
        ({"least": 0.2, "threshold": "fine"}, "\"threshold\" is 'fine', expected a number above 0, up to 0.5"),
    ],
    ids=str,
)
def test_settings_that_are_none(given: Any, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        with_adaptive(plan_of(Random(keep=0.5), 0.8), given)


def test_every_budget_must_fit_the_engine() -> None:
    """A small one moves the cuts of ADSC, which is said at the start, and not to the client with the first dull image."""
    with pytest.raises(FoveateError, match=r"with keep=0\.05 adsc would act before .*nearer to the server's"):
        with_adaptive(plan_of(ADSC(keep=0.6), 0.7), {"least": 0.05})
    with pytest.raises(FoveateError, match='"adaptive" needs a "limit" beside it'):
        with_adaptive(replace(plan_of(ADSC(keep=0.6), 0.7), budgets=None), {"least": 0.5})


def test_a_picture_decides_where_its_prompt_does_not() -> None:
    plan = with_adaptive(plan_of(DivPrune(keep=0.5), 0.8), {"least": 0.2})
    assert of_picture(SERVERS, plan, blank(48)) == Choice(keep=0.2)
    assert of_picture(Choice(keep=0.7), plan, blank(48)) == Choice(keep=0.7)
    assert of_picture(Choice(profile="exact"), plan, blank(48)) == Choice(profile="exact")
    own = replace(item(6, 8), choice=of_picture(SERVERS, plan, halves(48)))
    assert plan.entry_counts(own) == plan_of(DivPrune(keep=0.5), 0.8).entry_counts(item(6, 8))
    assert ", or 0.2 to 0.8 by the detail of each image, up to 0.8 where a prompt asks for it" in str(plan)


@dataclass(frozen=True)
class Each(Random):
    """Random with a share for each image of a prompt. A control, not a paper."""

    shares: tuple[float, ...] = ()

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tuple(tokens.budget(share)[i] for i, share in enumerate(self.shares))
        return Reduction(top_k(self.score(tokens, site), tokens.counts, counts), counts)


def test_counts_of_one_prompt_differ() -> None:
    """What `Each` says of two images is what Random says of each alone, so it may stand for transformers below."""
    from foveate.runtime.engines import frames, tokens_of

    tokens, site = tokens_of(frames([(1, 6, 6)] * 2)), Site("decoder", 0)
    both = Each(shares=(0.2, 0.8)).reduce(tokens, site)
    assert both.counts == (7, 29)
    alone = tokens_of(frames([(1, 6, 6)]))
    few, many = (
        Random(keep=share).score(alone, site).topk(n).indices.sort().values for share, n in ((0.2, 7), (0.8, 29))
    )
    assert both.keep.tolist() == [*few.tolist(), *(many + 36).tolist()]


def test_an_engine_says_what_transformers_says_with_each_budget() -> None:
    pytest.importorskip("vllm")
    from prometheus_client import REGISTRY
    from served import ask, engine, expected
    from test_engine import FAMILY, agree

    pictures, adaptive = [blank(48), halves(48), noise(48)], {"least": 0.2}
    keeps = [Adaptive(0.2, 0.8).keep(picture) for picture in pictures]
    assert keeps == [0.2, 0.5, 0.8]

    def prompt(text: str, *images: Image.Image) -> dict[str, Any]:
        from served import place

        text = text.replace("@", place(FAMILY))
        return {"prompt": f"user: {text}<|im_end|>\nassistant: ", "multi_modal_data": {"image": list(images)}}

    def series(budget: str) -> float:
        labels = {"method": "random", "budget": budget, "profile": "", "stage": "prompt"}
        return REGISTRY.get_sample_value("foveate_visual_tokens_total", labels) or 0

    method, wanted, want = Random(keep=0.6), [], []
    for picture, keep in zip(pictures, keeps, strict=True):
        wanted.append(prompt("the cat@", picture))
        want += expected(FAMILY, method.with_keep(keep), wanted[-1:])
    wanted.append(prompt("the cat@and@", pictures[0], pictures[2]))
    want += expected(FAMILY, Each(shares=(0.2, 0.8)), wanted[-1:])
    wanted.append({**wanted[0], "mm_processor_kwargs": {"foveate": {"keep": 0.6}}})
    want += expected(FAMILY, method, wanted[:1])
    before = [series(name) for name in ("0.2", "0.5", "0.8", "0.6")]
    with engine(FAMILY, method, limit=0.8, adaptive=adaptive) as llm:
        found = ask(llm, wanted)
        agree(found, want)
        agree(ask(llm, wanted[::-1]), want[::-1])  # from caches of processor, encoder and prefixes
        alone = [ask(llm, [each])[0] for each in wanted]
    agree(alone, want)
    tokens = [round(36 * keep) for keep in (0.2, 0.5, 0.8, 0.6)]
    after = [series(name) for name in ("0.2", "0.5", "0.8", "0.6")]
    of_three = [3 * n for n in (2 * tokens[0], tokens[1], 2 * tokens[2], tokens[3])]
    assert [b - a for a, b in zip(before, after, strict=True)] == of_three
    assert [each.prompt - found[0].prompt for each in found[:3]] == [0, tokens[1] - tokens[0], tokens[2] - tokens[0]]


def test_the_command_spells_it() -> None:
    import json
    import shlex

    from typer.testing import CliRunner

    from foveate.lab.cli import app

    call = ["serve", "mine/m", "-M", "random", "-k", "0.5", "--adaptive", "0.2", "--detail", "0.03", "--show"]
    done = CliRunner().invoke(app, [*call, "--limit", "0.8"])
    assert json.loads(shlex.split(done.stdout)[-1])["foveate"]["adaptive"] == {"least": 0.2, "threshold": 0.03}
    for words, sentence in (
        (call, "add --limit, the most"),
        (call[:6] + call[8:], "add --adaptive, the least of them"),
    ):
        assert sentence in str(CliRunner().invoke(app, words).exception)


def test_the_plugin_reads_it() -> None:
    pytest.importorskip("vllm")
    from test_refusals import configure

    from foveate.serving.vllm.settings import settings_of

    asked = {**Random(keep=0.5).to_dict(), "limit": 0.8, "adaptive": {"least": 0.2}}
    budgets = settings_of(configure(asked).model_config).plan.budgets
    assert budgets is not None
    assert budgets.adaptive == Adaptive(0.2, 0.8)
    with pytest.raises(Exception, match=r"needs a .*limit"):
        configure({**Random(keep=0.5).to_dict(), "adaptive": {"least": 0.2}})
