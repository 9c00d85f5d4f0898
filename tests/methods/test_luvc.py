"""LUVC and its halves: schedules to the end, dials and mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch

import foveate
from foveate import LUVC, OIM, SPU, Host, Method
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.handle import host_of

HOST = Host("qwen2_vl", blocks=4, layers=8, has_cls=False)


@pytest.mark.parametrize("schedule", ["early", "halving", "linear"])
def test_the_last_layer_has_no_image(family: str, schedule: Any) -> None:
    model = tiny.model(family)
    rows: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]
    batch = tiny.inputs(family, rows)
    text = (batch["attention_mask"] - tiny.visual_mask(family, batch).int()).sum(1)
    with foveate.compress(model, LUVC(schedule=schedule)) as handle, torch.no_grad():
        output = model(**batch, use_cache=True)
        report = handle.report()
    assert report.layer_tokens[-1] == int(text.max())
    last = tiny.of_attention(family, report.layer_tokens)[-1]
    assert tiny.entries(output.past_key_values)[-1].keys.shape[-2] == last
    assert sum(report.visits[-1].after) == 0
    assert list(report.layer_tokens) == sorted(report.layer_tokens, reverse=True)


def test_stages_are_shares_of_all() -> None:
    method = LUVC(schedule=((2, 0.5), (4, 0.2)))
    assert [(s.at, s.layer, s.keep) for s in method.sites(HOST)] == [
        *[("tower", 3, pytest.approx(0.8)), ("decoder", 2, 0.5), ("decoder", 4, 0.4)]
    ]


def test_luvc_is_its_parts() -> None:
    assert LUVC().parts() == (OIM(keep=0.8), SPU(ratio=0.7))
    assert LUVC(merge=1.0).parts() == (SPU(ratio=0.7),)
    assert LUVC(schedule="halving", positions="renumber").parts() == (
        *(OIM(keep=0.8, positions="renumber"), SPU(ratio=0.7, schedule="halving", positions="renumber")),
    )
    assert (LUVC() + LUVC(keep=0.5)).terms() == (LUVC(), LUVC(keep=0.5))


def test_keep_is_one_power_on_both_parts() -> None:
    merger, pruner = LUVC(keep=0.3).resolve(HOST).parts()
    assert merger.keep is not None
    power = math.log(merger.keep) / math.log(0.8)
    assert isinstance(pruner, SPU)
    assert pruner.schedule == ((0, pytest.approx(0.7**power)), (7, 0.0))
    assert merger.keep * pruner.schedule[0][1] * 7 == pytest.approx(0.3 * 8)  # type: ignore[operator]


@pytest.mark.parametrize(
    "method",
    [
        LUVC(),
        OIM(),
        SPU(),
        OIM(passes=((1, "width", 0.5), (2, "height", 0.9))),
    ],
    ids=repr,
)
def test_the_dial_turns_one_way(family: str, method: Method) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    costs = []
    for keep in (method.least(host_of(model)), 0.3, 0.5, 0.8, 1.0):
        with foveate.compress(model, method.with_keep(keep)) as handle, torch.no_grad():
            model(**batch)
            report = handle.report()
            costs.append(report.mean_tokens)
    assert costs == sorted(costs)
    assert costs[-1] == report.visual_tokens


@pytest.mark.parametrize(
    ("cls", "options", "sentence"),
    [
        (LUVC, {"merge": -0.5}, "ratio"),
        (LUVC, {"merge": float("nan")}, "give a finite number"),
        (LUVC, {"keep": 0.5, "merge": 0.8}, "keep=0.5 and merge=0.8"),
        (OIM, {"passes": ()}, "names nothing"),
        (OIM, {"passes": ((1, "width", 0.4),)}, "0.5 to 1"),
        (OIM, {"passes": ((1, "width", 1.4),)}, "0.5 to 1"),
        (OIM, {"passes": ((2, "width", 0.5), (1, "height", 0.5))}, "first block"),
        (OIM, {"passes": ((-1, "width", 0.5),)}, "first block"),
        (OIM, {"passes": ((1, "depth", 0.5),)}, "width"),
        (LUVC, {"schedule": ((1, 0.5),), "ratio": 0.5}, "either `schedule` or `ratio`"),
        (SPU, {"schedule": ((1, 0.5), (3, 0.7))}, "grows from 0.5 to 0.7"),
        (SPU, {"schedule": ((3, 0.5), (1, 0.2))}, "ascending"),
        (SPU, {"schedule": "cosine"}, "halving"),
        (SPU, {"every": 0}, "at least 1"),
        (SPU, {"schedule": ((1, 0.5),), "every": 2}, "either `schedule` or `every`"),
        (SPU, {"cutoff": 1.5}, "Nyquist"),
        (SPU, {"mode": "high"}, "residual"),
    ],
    ids=repr,
)
def test_bad_options(cls: type[Method], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        cls(**options)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (OIM(passes=((9, "width", 0.5),)), "no tower layer 9"),
        (OIM(passes=((0, "width", 0.5),), similarity="keys"), "no layer before it"),
        (SPU(schedule=((9, 0.5),)), "no decoder layer 9"),
    ],
    ids=repr,
)
def test_layers_that_do_not_exist(family: str, method: Method, sentence: str) -> None:
    with pytest.raises(UnsupportedSiteError, match=sentence):
        foveate.compress(tiny.model(family), method)
