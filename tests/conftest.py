"""Fixtures for all tests: every family and every attention implementation; one thread, as tiny models want it.

And what is left out of that matrix: families in `WHOLE`, one with a padded tower and one with a packed one, run all of it.
The others run with sdpa and one method for every kind of site, and of those that are another one but for a detail
(`SIBLINGS`) each test runs once. ``--other-families`` runs what is left out, and nothing else; ``--lean`` leaves as much out
of all families.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Hashable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import tiny
import torch
from matrix import kinds_of, refused
from tiny import SIBLINGS, WHOLE
from transformers import logging

from foveate import Method, Site

torch.set_num_threads(1)
logging.set_verbosity_error()


@pytest.fixture(params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=("sdpa", "eager"))
def impl(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--other-families", action="store_true", help="what is left out without it: all methods on all families"
    )
    parser.addoption("--part", default="1/1", help="only a part of the tests: the first of seven is 1/7")
    parser.addoption(
        "--lean",
        action="store_true",
        help="every family runs with one method for each kind of site",
    )


@pytest.hookimpl(trylast=True)  # after -k: what is asked for alone runs
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        family, kinds, _ = _asked(item, Method)
        reason = refused(family, kinds)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    if any("[" in name for name in config.args):  # a test was named
        return
    seen: dict[Hashable, set[Hashable]] = {}
    whole = () if config.getoption("--lean") else WHOLE
    others = [_spared(item, seen, whole) for item in items]
    here = config.getoption("--other-families")
    part, of = map(int, config.getoption("--part").split("/"))
    runs = [other == here and zlib.crc32(item.nodeid.encode()) % of == part - 1 for item, other in zip(items, others)]
    config.hook.pytest_deselected(items=[item for item, run in zip(items, runs) if not run])
    items[:] = [item for item, run in zip(items, runs) if run]


def _asked(item: Any, *acting: type) -> tuple[str | None, set[Hashable], list[Hashable]]:
    """What a test is asked for: the family, the kinds of sites of what acts, and its other parameters."""
    given: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    family = next((value for value in given.values() if isinstance(value, str) and value in tiny.FAMILIES), None)
    kinds: set[Hashable] = set()
    rest: list[Hashable] = []
    for name, value in given.items():
        table = getattr(item.module, {"plan": "PLANS", "full": "FULL"}.get(name, ""), {})
        value = table.get(value, value) if name in ("plan", "full") else value
        if isinstance(value, acting):
            kinds |= kinds_of(value)
        else:
            rest.append((name, str(value)))
    return family, kinds, rest


def _spared(item: Any, seen: dict[Hashable, set[Hashable]], whole: Collection[str]) -> bool:
    """Whether a test of a family outside ``whole`` tells nothing that another one does not.

    ``seen``: for a test and its other parameters (of siblings, for a test), the kinds of sites that it has met.
    """
    family, kinds, rest = _asked(item, Method, Site)
    if family is None or family in whole:
        return False
    if ("impl", "eager") in rest:
        return True
    test: Hashable = (item.location[0], item.originalname)
    if family in SIBLINGS:
        met, kinds = seen.setdefault((test, family), set()), {"any"}
    else:
        met = seen.setdefault((test, *rest), set())
    new = kinds - met
    met |= kinds
    return bool(kinds) and not new
