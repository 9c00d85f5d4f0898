"""What vLLM serves and foveate does not is refused with the reason, which the page on serving has, too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from foveate.serving.vllm.unserved import UNSERVED, sentence

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_each_is_refused_in_one_sentence() -> None:
    said = sentence("Gemma3ForConditionalGeneration", ["B", "A"])
    assert said.startswith(
        "foveate does not serve Gemma3ForConditionalGeneration in vLLM, because an image sees all of itself"
    )
    assert said.endswith("; it serves A, B")
    assert sentence("", ["A"]) == "foveate does not serve this model in vLLM; it serves A"


def test_the_page_says_the_same() -> None:
    table = PAGE.split("<!-- unserved -->")[1].split("<!-- end -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert {name.strip("`"): why for names, why in rows for name in names.split(", ")} == UNSERVED


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="asks vLLM for its model classes")
def test_vllm_has_them_and_no_file_here_serves_them() -> None:
    from vllm import ModelRegistry

    from foveate.serving.vllm.families import engines

    assert set(UNSERVED) <= set(ModelRegistry.get_supported_archs())
    assert not set(UNSERVED) & set(engines())
