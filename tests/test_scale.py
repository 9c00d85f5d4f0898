"""What the next methods and families cost `make test`, in tests and in forwards of a model, which no machine changes.

A forward of a tiny model with a method takes about 10 ms on a fast, quiet machine: 250 are two and a half seconds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from contract import CORE, PROPERTIES, turn
from probes.synthetic import PROBES, Cascade
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

STUBS = 8
STUB = """
from dataclasses import dataclass
from foveate import Method, Site

@dataclass(frozen=True)
class {name}(Method):
    keep: float = 0.5

    def sites(self, host):
        return [Site("decoder", 1, self.keep)]

    def score(self, tokens, site):
        return tokens.hidden.norm(dim=-1)
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tests of `make test` where some methods more are installed."""
    folder = tmp_path_factory.mktemp("stubs")
    for number in range(STUBS):
        (folder / f"stub{number}.py").write_text(STUB.format(name=f"Stub{number}"))
        info = folder / f"stub{number}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: stub{number}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[foveate.methods]\nstub{number} = stub{number}\n")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "--", "."]
    here = Path(__file__).parent
    ran = subprocess.run(command, cwd=here, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:]
    return [line for line in ran.stdout.splitlines() if "::" in line]


def test_a_method_adds_few_tests(collected: list[str]) -> None:
    of_stubs = Counter(found for line in collected for found in set(re.findall(r"\bstub\d+\b", line.lower())))
    assert len(of_stubs) == STUBS
    assert set(of_stubs.values()) == {of_stubs["stub0"]}
    contract = [line for line in collected if "test_contract[" in line]
    of_the_first = [line for line in contract if re.search(r"\bstub0\b", line)]
    assert len(CORE) < len(of_the_first) <= len(PROPERTIES) + len(CORE)
    assert of_stubs["stub0"] - len(of_the_first) <= 30  # that call no model: options, JSON, pages


def test_a_family_adds_few_tests(collected: list[str]) -> None:
    """One that is built like another; a new structure has probes as well."""
    of_families = Counter(found for line in collected for found in re.split(r"[\[\]-]", line) if found in tiny.FAMILIES)
    others = sorted(of_families[family] for family in tiny.FAMILIES if family not in tiny.STRUCTURES)
    assert len(CORE) <= others[0] <= others[len(others) // 2] <= 25, "a family like others"
    assert others[-1] <= 80, "one with something of its own"


@contextmanager
def forwards() -> Iterator[list[float]]:
    """Count forwards of language models, by their layers."""
    count = [0.0]

    def note(module: nn.Module, args: object) -> None:
        count[0] += type(module).__name__.endswith("DecoderLayer") / tiny.LAYERS

    handle = register_module_forward_pre_hook(note)
    try:
        yield count
    finally:
        handle.remove()


def test_the_contract_of_a_method_takes_few_forwards() -> None:
    with forwards() as count:
        for family in tiny.WHOLE:
            for check in PROPERTIES:
                if check not in CORE and turn(check) != family:
                    continue
                try:
                    check(family, Cascade())
                except pytest.skip.Exception:
                    continue
    assert 60 < count[0] <= 250, "two and a half seconds"


def test_the_contract_of_a_family_takes_few_forwards() -> None:
    with forwards() as count:
        for check in CORE:
            check("qwen2_vl", PROBES["tower and decoder"])
    assert 10 < count[0] <= 60
