"""Fixtures for all tests: every family and every attention implementation; one thread, as tiny models want it.

And which pairs are left to the matrix (``--matrix`` runs these, and nothing else). Of a test for all families (the fixture
``family``) those in `STRUCTURES` run, one for each way to build a model, with sdpa, or those that the mark ``families`` names;
if it is for many methods as well, those in `WHOLE`, one with a padded tower and one with a packed one. Of a test that names its
families all run, with one method for each kind of site. ``--lean`` runs a part of that, for an old transformers: see `_lean`.
"""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import tiny
import torch
from contract import CORE, PROPERTIES, turn
from matrix import kinds_of, refused, structure
from tiny import SIBLINGS, STRUCTURES, WHOLE
from transformers import logging

from foveate import Method, Site

try:  # the same examples in every run, however slow the machine: what a commit says today it says tomorrow
    from hypothesis import settings

    settings.register_profile("same", derandomize=True, deadline=None)
    settings.load_profile("same")
except ImportError:  # an environment for a part of the tests
    pass

torch.set_num_threads(1)
logging.set_verbosity_error()


@pytest.fixture
def family(request: pytest.FixtureRequest) -> str:
    """Each family: see `pytest_generate_tests`."""
    return str(request.param)


@pytest.fixture(params=("sdpa", "eager"))
def impl(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="what is left out without it: all methods on all families")
    parser.addoption("--method", help="only the tests of one method, by its name")
    parser.addoption(
        "--part", default="1/1", help="only a part of the tests, and of the families: the first of seven is 1/7"
    )
    parser.addoption("--lean", action="store_true", help="the contract on few families, and each test of a family once")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "families(*names): those of the fixture `family` in `make test`, for STRUCTURES")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the tests of the fixture `family`: a hundred thousand that the matrix alone runs are made for nothing else."""
    marks = list(metafunc.definition.iter_markers())
    by_hand = any(mark.name == "parametrize" and "family" in str(mark.args[0]) for mark in marks)
    if "family" not in metafunc.fixturenames or by_hand or hasattr(metafunc.module, "family"):
        return
    few = next((mark.args for mark in marks if mark.name == "families"), tiny.STRUCTURES)
    everything = metafunc.config.getoption("--matrix") or _is_named(metafunc.config)
    metafunc.parametrize("family", tiny.FAMILIES if everything else few, indirect=True)


def _is_named(config: pytest.Config) -> bool:
    """Whether the command line names a test with its parameters, which then runs whatever they are."""
    return any("[" in name for name in config.args)


def pytest_collection_finish() -> None:
    """Leave what importing and collecting has made out of every later collection of garbage: a million objects."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)  # after -k: what is asked for alone runs
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    families = [_asked(item, Method)[:2] for item in items]
    for item, (family, kinds) in zip(items, families):
        reason = refused(family, kinds)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        # With --dist loadgroup one process has all tests of a family, and builds its models once.
        if family is not None:
            item.add_marker(pytest.mark.xdist_group(family))
    if _is_named(config):
        return
    seen: dict[Hashable, set[Hashable]] = {}
    matrix, method = config.getoption("--matrix"), config.getoption("--method")
    part, of = map(int, config.getoption("--part").split("/"))
    runs = [_is_left_to_the_matrix(item, seen) == matrix for item in items]
    parts = [
        zlib.crc32(item.nodeid.encode()) if family is None else tiny.FAMILIES.index(family)
        for item, (family, _) in zip(items, families)
    ]  # a family is in one of them
    runs = [run and each % of == part - 1 for run, each in zip(runs, parts)]
    if method:  # alone it has time for what the matrix asks of these two families
        runs = [run or family in WHOLE for run, (family, _) in zip(runs, families)]
        runs = [run and _is_of_method(item, method) for run, item in zip(runs, items)]
    if config.getoption("--lean"):
        runs = _lean(items, runs)
    config.hook.pytest_deselected(items=[item for item, run in zip(items, runs) if not run])
    items[:] = [item for item, run in zip(items, runs) if run]


def _asked(item: Any, *acting: type) -> tuple[str | None, set[Hashable], list[Hashable]]:
    """What a test is asked for: the family, the kinds of sites of what acts, and its other parameters."""
    given: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    family = next((value for value in given.values() if isinstance(value, str) and value in tiny.FAMILIES), None)
    kinds: set[Hashable] = set()
    rest: list[Hashable] = []
    for name, value in given.items():
        value = _meant(item, name, value)
        if isinstance(value, acting):
            kinds |= kinds_of(value)
        else:
            rest.append((name, str(value)))
    return family, kinds, rest


def _meant(item: Any, name: str, value: Any) -> Any:
    """The method that a test calls by a name, or the parameter itself."""
    tables = {"plan": ("PLANS", "METHODS"), "full": ("FULL",), "probe": ("PROBES",)}.get(name, ())
    known = [getattr(item.module, table, {}) for table in tables]
    return next((table[value] for table in known if value in table), value)


def _is_of_method(item: Any, method: str) -> bool:
    """Whether a test is about one published method: it is in its file, or has the method as a parameter."""
    given: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    meant = [_meant(item, name, value) for name, value in given.items()]
    about = {part.name() for value in meant if isinstance(value, Method) for part in value.parts()}
    about |= {value.name() for value in meant if isinstance(value, type) and issubclass(value, Method)}
    about |= {value.stem for value in meant if isinstance(value, Path)}
    return method in about or item.path.name == f"test_{method}.py"


def _planned(item: Any) -> set[Hashable]:
    """What the runtime makes of the published methods that a test calls by a name."""
    given: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    meant = [_meant(item, name, given[name]) for name in ("plan", "full") if name in given]
    return {part for method in meant if isinstance(method, Method) for part in structure(method)}


def _is_left_to_the_matrix(item: Any, seen: dict[Hashable, set[Hashable]]) -> bool:
    """Whether `make test` can do without this pair; the test's own file may say so, in a function `leaves_to_the_matrix`.

    ``seen``: for a test and its other parameters (of siblings, for a test), the kinds of sites that it has met.
    """
    family, kinds, rest = _asked(item, Method, Site)
    if hasattr(item.module, "leaves_to_the_matrix") and hasattr(item, "callspec"):
        return bool(item.module.leaves_to_the_matrix(**item.callspec.params))
    check = item.callspec.params.get("check") if hasattr(item, "callspec") else None
    if check in PROPERTIES and check not in CORE and family in WHOLE:
        return turn(check) != family
    eager = ("impl", "eager") in rest
    if eager and kinds:  # that it says what sdpa says is in the contract
        return True
    if "runtime" in item.path.parts and (plans := _planned(item)):  # which knows no method: of one kind, one
        met = seen.setdefault((item.location[0], item.originalname, "plans", family, *rest), set())
        if plans <= met:
            return True
        met |= plans
    if family is None or family in WHOLE:
        return False
    if eager:
        return True
    named = any("family" in str(marker.args[0]) for marker in item.iter_markers("parametrize"))
    if not named:
        return bool(kinds) or family not in STRUCTURES
    test: Hashable = (item.location[0], item.originalname)
    if family in SIBLINGS:
        met, kinds = seen.setdefault((test, family), set()), {"any"}
    else:
        met = seen.setdefault((test, *rest), set())
    new = kinds - met
    met |= kinds
    return bool(kinds) and not new


def _lean(items: list[Any], runs: list[bool]) -> list[bool]:
    """Of what runs all tests that are for no family, the probes on two families, and of each other test of a family one."""
    met: set[Hashable] = set()
    chosen = []
    for item, run in zip(items, runs):
        family, _, _ = _asked(item, Method, Site)
        test = (item.location[0], item.originalname, family)
        probes = item.originalname == "test_probe" and family in WHOLE
        chosen.append(run and (family is None or probes or test not in met))
        met |= {test} if run else set()
    return chosen
