"""Fixtures for all tests: every family and every attention implementation; one thread, as tiny models want it.

And what is left out of that matrix: families in `WHOLE` differ in structure and run all of it; the others (a part of what
these have, put together in another way) run with sdpa and one method for every kind of site, and of those that are another
one but for a detail (`SIBLINGS`) each test runs once. ``--other-families`` runs what is left out, and nothing else;
``--lean`` leaves as much out of all families.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Hashable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import tiny
import torch
from tiny import SIBLINGS, WHOLE
from transformers import logging

from foveate import Host, Method, Site
from foveate.errors import FoveateError

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
    parser.addoption(
        "--lean",
        action="store_true",
        help="families that differ in structure run with one method for each kind of site, too",
    )


@pytest.hookimpl(trylast=True)  # after -k: what is asked for alone runs
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        family, kinds, _ = _asked(item, Method)
        if family in tiny.gemma.SLIDING and ("decode", "before", "reduce") in kinds:
            item.add_marker(pytest.mark.skip(reason="sliding layers have no decode sites"))
        if family in tiny.tiles.OVIS and any(kind[:1] == ("pixels",) for kind in kinds if isinstance(kind, tuple)):
            item.add_marker(pytest.mark.skip(reason="its tower takes images of one size"))
        if family in tiny.cpm.FAMILIES and ("tower_output", "before", "restore") in kinds:
            item.add_marker(pytest.mark.skip(reason="parked where the tower merges: see runtime/test_merger.py"))
    if any("[" in name for name in config.args):  # a test was named
        return
    seen: dict[Hashable, set[Hashable]] = {}
    whole = () if config.getoption("--lean") else WHOLE
    others = [_spared(item, seen, whole) for item in items]
    here = config.getoption("--other-families")
    config.hook.pytest_deselected(items=[item for item, other in zip(items, others) if other != here])
    items[:] = [item for item, other in zip(items, others) if other == here]


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
            kinds |= _kinds(value)
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


@functools.cache
def _kinds(acting: Method | Site) -> frozenset[Hashable]:
    """Places, actions and position policies of a method or a site."""
    if isinstance(acting, Site):
        return frozenset({(acting.at, acting.where, acting.action)})
    try:
        sites = acting.sites(Host("llava", tiny.BLOCKS, tiny.LAYERS, has_cls=True))
    except FoveateError:
        return frozenset({repr(acting)})
    return frozenset({acting.parts()[0].positions}).union(*map(_kinds, sites))
