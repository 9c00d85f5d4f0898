"""The driver of transformers' own tests (`make test-hosts`), on a made-up checkout of one file."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import transformers

from foveate.models import list_families

HOSTS = Path(__file__).parents[1] / "tools" / "hosts"
DRIVER: dict[str, Any] = runpy.run_path(str(HOSTS / "run.py"))

TESTS = """
import copy

import tiny
import torch


def hooks(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_carries_a_method(tmp_path):
    model = tiny.build(tiny.config("mistral3"))
    batch = tiny.inputs("mistral3", [[3, "image", 5]])
    assert hooks(model) == 0
    with torch.no_grad():
        model(**batch)
    assert hooks(model) > 1
    again = copy.deepcopy(model)
    assert hooks(model) == hooks(again) == 0
    model.generate(**batch, max_new_tokens=2)
    assert hooks(model) > 1
    model.save_pretrained(tmp_path)
    assert hooks(type(model).from_pretrained(tmp_path)) == 0


def test_fails():
    raise RuntimeError("of its own")
"""


def test_a_checkout(tmp_path: Path) -> None:
    for family in ("mistral3", "unknown"):
        folder = tmp_path / "tests" / "models" / family
        folder.mkdir(parents=True)
        (folder / f"test_modeling_{family}.py").write_text(TESTS)
    files = DRIVER["files_of"](tmp_path)
    assert [path.name for path in files] == ["test_modeling_mistral3.py"]
    found = DRIVER["run"]("everything", files, tmp_path)
    name = "test_modeling_mistral3::test_{}".format
    assert found == {name("carries_a_method"): "passed", name("fails"): "failed: RuntimeError: of its own"}


def test_what_is_not_expected_is_said() -> None:
    stock = {"a": "passed", "b": "failed: x", "c": "failed: y", "d": "passed", "e": "skipped"}
    expected = {"stock": ["b", "d", "of another family"], "stride": {"*a*": "half of the tokens are gone"}}
    found = {
        "stock": stock,
        "everything": stock | {"a": "failed: z", "b": "failed: z"},
        "stride": {name: outcome for name, outcome in stock.items() if name != "e"}
        | {"a": "failed: z", "d": "failed: z"},
    }
    assert DRIVER["compare"](found, expected) == [
        "stock: c failed: y",
        "stock: d is listed as failing, and does not",
        "everything: a failed: z, and in stock transformers passed",
        "stride: d failed: z, and in stock transformers passed",
        "stride: e missing, and in stock transformers skipped",
    ]


def test_what_is_expected_is_written_for_what_ran() -> None:
    expected = {
        "stock": ["common::a::fails", "common::a::mended", "common::other::fails"],
        "passed": {"a": 9, "other": 3},
        "without": {"b": "not run yet", "c": "it writes in steps"},
    }
    stock = {"common::a::fails": "failed: x", "common::a::mended": "passed", "common::b::works": "passed"}
    DRIVER["update"](expected, {"stock": stock, "everything": stock})
    assert expected == {
        "stock": ["common::a::fails", "common::other::fails"],
        "passed": {"a": 1, "b": 1, "other": 3},
        "without": {"c": "it writes in steps"},
    }


def test_every_type_was_asked_to_generate_or_says_why_not() -> None:
    """Of transformers' tests of `generate`, some passed with everything kept."""
    file = HOSTS / "expected" / f"{transformers.__version__}-generate.json"
    if not file.exists():
        pytest.skip("not run with this transformers")
    expected = json.loads(file.read_text())
    wanted = {name for family in list_families().values() for name in (family.name, *family.types)}
    asked, without = {name for name, passed in expected["passed"].items() if passed}, expected["without"]
    assert asked | {*without} == wanted
    assert not asked & {*without}
    assert all(isinstance(reason, str) and " " in reason for reason in without.values())
