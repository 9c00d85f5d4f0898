"""LUVC and its halves: schedules to the end, dials and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import foveate
from foveate import LUVC, OIM, SPU, Host, Method
from foveate.errors import ConfigError, UnsupportedSiteError

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
    method = LUVC(schedule=None, stages=((2, 0.5), (4, 0.2)))
    assert [(s.layer, s.keep) for s in SPU.sites(method, HOST)] == [(2, 0.5), (4, 0.4)]
    bent = method.with_share(0.25, HOST)
    assert [s.keep for s in SPU.sites(bent, HOST)] == pytest.approx([0.25, 0.04 / 0.25])


def test_the_dial_leaves_a_merger_off_that_is_off() -> None:
    assert LUVC(merge=1.0).with_share(0.3, HOST) == LUVC(merge=1.0, keep=0.3)


@pytest.mark.parametrize(
    "method",
    [
        LUVC(),
        OIM(),
        SPU(),
        SPU(schedule="halving"),
        SPU(schedule="linear"),
        OIM(merge=None, passes=((1, "width", 0.5), (2, "height", 0.9))),
    ],
    ids=repr,
)
def test_the_dial_turns_one_way(family: str, method: Method) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    costs = []
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        with foveate.compress(model, method.with_share(share, HOST)) as handle, torch.no_grad():
            model(**batch)
            report = handle.report()
            costs.append(report.mean_tokens)
    assert costs == sorted(costs)
    assert costs[-1] == report.visual_tokens


@pytest.mark.parametrize(
    ("cls", "options", "sentence"),
    [
        (OIM, {"merge": 0.2}, "list more `passes`"),
        (OIM, {"merge": 1.2}, "ratio"),
        (OIM, {"merge": float("nan")}, "too large or NaN"),
        (LUVC, {"merge": -0.5}, "ratio"),
        (OIM, {"merge": None}, "either `merge` or `passes`"),
        (OIM, {"passes": ((1, "width", 0.5),)}, "either `merge` or `passes`"),
        (OIM, {"merge": None, "passes": ((1, "width", 0.4),)}, "0.5 to 1"),
        (OIM, {"merge": None, "passes": ((1, "width", 1.4),)}, "0.5 to 1"),
        (OIM, {"merge": None, "passes": ((2, "width", 0.5), (1, "height", 0.5))}, "first block"),
        (OIM, {"merge": None, "passes": ((-1, "width", 0.5),)}, "first block"),
        (OIM, {"merge": None, "passes": ((1, "depth", 0.5),)}, "width"),
        (SPU, {"schedule": None}, "either `schedule` or `stages`"),
        (LUVC, {"stages": ((1, 0.5),)}, "either `schedule` or `stages`"),
        (SPU, {"schedule": None, "stages": ((1, 0.5), (3, 0.7))}, "grows from 0.5 to 0.7"),
        (SPU, {"schedule": None, "stages": ((3, 0.5), (1, 0.2))}, "ascending"),
        (SPU, {"schedule": "cosine"}, "halving"),
        (SPU, {"every": 0}, "at least 1"),
        (SPU, {"schedule": None, "stages": ((1, 0.5),), "every": 2}, "named schedule"),
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
        (OIM(merge=None, passes=((9, "width", 0.5),)), "no tower layer 9"),
        (OIM(merge=None, passes=((0, "width", 0.5),), similarity="keys"), "no layer before it"),
        (SPU(schedule=None, stages=((9, 0.5),)), "no decoder layer 9"),
    ],
    ids=repr,
)
def test_layers_that_do_not_exist(family: str, method: Method, sentence: str) -> None:
    with pytest.raises(UnsupportedSiteError, match=sentence):
        foveate.compress(tiny.model(family), method)
