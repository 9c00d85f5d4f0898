"""A pytest plugin that puts a method on every model of a supported family, while tests that know nothing of it run.

``FOVEATE_HOSTS_MODE`` says which (`MODES`), ``FOVEATE_HOSTS_OUT`` where the outcome of each test goes, as JSON. The method is
attached lazily, when a whole model is first called (`forward`, `generate`, `get_image_features`, ...), and taken off again when
it is saved, copied or pickled: a model that carries hooks cannot be copied, and users are told to remove the handle first.
"""

from __future__ import annotations

import json
import os
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

import foveate
from foveate import OIM, DivPrune, Stride
from foveate.models import family_of, list_families

#: Sites where features meet text, and between decoder layers, none of which removes anything.
LATER = DivPrune(keep=1.0) + Stride(ratio=1.0, layers=(0, 1))
MODES: dict[str, Any] = {
    "stock": None,
    "everything": OIM(keep=1.0) + LATER,  # and one in the tower
    "stride": Stride(keep=0.5),
}
CALLS = ("__call__", "generate", "get_image_features", "get_video_features")
LEAVES = ("save_pretrained", "__reduce_ex__")  # the latter copies and pickles

method = MODES[os.environ.get("FOVEATE_HOSTS_MODE", "stock")]
handles: WeakKeyDictionary[PreTrainedModel, foveate.Handle] = WeakKeyDictionary()
outcomes: dict[str, str] = {}
patched: set[type[PreTrainedModel]] = set()


def _entry(cls: type[Any], name: str) -> None:
    stock = getattr(cls, name)

    @wraps(stock)
    def run(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if self not in handles and type(self) is cls:
            blind = method is MODES["everything"] and family_of(self.config).tower.unseen
            handles[self] = foveate.compress(self, LATER if blind else method)
        return stock(self, *args, **kwargs)

    setattr(cls, name, run)


def _exit(cls: type[Any], name: str) -> None:
    stock = getattr(cls, name)

    @wraps(stock)
    def run(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if self in handles:
            handles.pop(self).remove()
        return stock(self, *args, **kwargs)

    setattr(cls, name, run)


def pytest_configure(config: pytest.Config) -> None:
    if method is None:
        return
    names = {NAMES[each] for family in list_families().values() for each in family.types if each in NAMES}
    stock = PreTrainedModel.__init__

    @wraps(stock)
    def init(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        if cls.__name__ in names and cls not in patched:
            patched.add(cls)
            for name in CALLS:
                if hasattr(cls, name):
                    _entry(cls, name)
            for name in LEAVES:
                _exit(cls, name)
        stock(self, *args, **kwargs)

    PreTrainedModel.__init__ = init  # type: ignore[method-assign]


def pytest_runtest_teardown(item: pytest.Item) -> None:
    while handles:
        handles.popitem()[1].remove()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file, _, test = report.nodeid.partition("::")
    name = f"{Path(file).stem}::{test}"
    worse = report.failed or name not in outcomes
    if worse and (report.when == "call" or report.outcome != "passed"):
        outcomes[name] = report.outcome if report.passed or report.skipped else f"failed: {_last_line(report)}"


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash else report.longrepr).split())[:200]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if out := os.environ.get("FOVEATE_HOSTS_OUT"):
        Path(out).write_text(json.dumps(outcomes, indent=1, sort_keys=True))
