"""Methods of other packages: each is loaded alone, and none takes a name away."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny

import foveate
from foveate.lab.catalog import describe_methods
from foveate.methods import list_methods, own_methods

GOOD = """
from dataclasses import dataclass
from foveate import Method, Site

@dataclass(frozen=True)
class {name}(Method):
    keep: float = 0.5

    def sites(self, host):
        return [Site("lm_entry", keep=self.keep)]

    def score(self, tokens, site):
        return tokens.hidden.norm(dim=-1)
"""

Install = Callable[..., list[str]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(module=source, ...)`` puts a package on the path for each, and gives what was warned of."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def packages(**sources: str) -> list[str]:
        for module, source in sources.items():
            (tmp_path / f"{module}.py").write_text(source)
            info = tmp_path / f"{module}-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
            (info / "entry_points.txt").write_text(f"[foveate.methods]\nof_{module} = {module}\n")
        importlib.invalidate_caches()
        list_methods.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list_methods()
            list_methods()  # says it once
        return [str(warning.message) for warning in caught]

    yield packages
    list_methods.cache_clear()
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_one_that_cannot_be_imported(install: Install) -> None:
    said = install(broken="import no_such_package", gone="raise SystemExit(3)", fine=GOOD.format(name="Loudest"))
    assert len(said) == 2
    assert "'of_broken' (broken) of broken" in said[0]
    assert "ModuleNotFoundError: No module named 'no_such_package'" in said[0]
    assert "'of_gone'" in said[1]
    assert list_methods().keys() - own_methods().keys() == {"loudest"}
    assert foveate.Loudest is list_methods()["loudest"]  # type: ignore[attr-defined]
    assert [method["paper"] for method in describe_methods(search="loudest")] == [None]
    with foveate.compress(tiny.model("llava"), "loudest", keep=0.25) as handle:
        assert type(handle.method).__name__ == "Loudest"


def test_a_name_that_is_taken(install: Install) -> None:
    again = GOOD.format(name="Twice") + "\n    @classmethod\n    def name(cls):\n        return 'another'\n"
    said = install(one=GOOD.format(name="FastV"), two=GOOD.format(name="Twice"), zwo=again)
    assert len(said) == 2
    assert "one.FastV has a name of foveate.methods.fastv.FastV, which stays" in said[0]
    assert "zwo.Twice has a name of two.Twice" in said[1]
    assert list_methods()["fastv"] is foveate.FastV
    assert foveate.FastV.__module__ == "foveate.methods.fastv"
    assert list_methods().keys() - own_methods().keys() == {"twice"}


def test_what_is_no_method(install: Install) -> None:
    named = GOOD.format(name="Named") + "\n    @classmethod\n    def name(cls):\n        return 'a + b'\n"
    said = install(empty="from foveate import FastV", named=named)
    assert [("names no method" in said[0]), ("has the name 'a + b'" in said[1])] == [True, True]
    assert list_methods() == dict(sorted(own_methods().items()))


def test_ours_wait_for_nobody(install: Install, tmp_path: Path) -> None:
    """Our own methods are there without a look at what is installed."""
    install(noisy="import pathlib; pathlib.Path(__file__).with_suffix('.seen').touch()")
    seen = tmp_path / "noisy.seen"
    seen.unlink()
    sys.modules.pop("noisy")
    list_methods.cache_clear()
    assert foveate.FastV() == foveate.method_from_dict({"method": "fastv"})
    with foveate.compress(tiny.model("llava"), "fastv"):
        pass
    assert not seen.exists()
