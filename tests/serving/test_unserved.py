"""What vLLM serves and foveate does not is refused with a reason, which names what vLLM's code has."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from foveate.models import list_families
from foveate.serving.vllm.unserved import UNSERVED, sentence

#: those of which the sentence says that foveate does not know them in transformers -> their names there
UNKNOWN = {
    "Llama4ForConditionalGeneration": "llama4",
    "Phi4MMForCausalLM": "phi4_multimodal",
}
with_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="reads vLLM's code")


def test_each_is_refused_in_one_sentence() -> None:
    said = sentence("Gemma3ForConditionalGeneration", ["B", "A"])
    assert said.startswith(
        "foveate does not serve Gemma3ForConditionalGeneration in vLLM, because most layers of its `Gemma3"
    )
    assert said.endswith("; it serves A, B")
    assert sentence("", ["A"]) == "foveate does not serve this model in vLLM; it serves A"


def test_what_they_say_of_transformers() -> None:
    assert set(UNKNOWN) == {name for name, why in UNSERVED.items() if "does not know it in transformers" in why}
    assert set(UNKNOWN.values()) <= set(CONFIG_MAPPING) - set(list_families())
    assert "kimi_vl" not in CONFIG_MAPPING


@with_vllm
@pytest.mark.parametrize("name", UNSERVED)
def test_each_names_what_vllm_has(name: str) -> None:
    """In the module of the class, in one that it imports, or in what vLLM reads off configs."""
    import vllm

    module = Path(*vllm.ModelRegistry.models[name].module_name.split(".")[1:]).with_suffix(".py")
    root = Path(vllm.__file__).parent
    code = (root / module).read_text(encoding="utf-8")
    beside = re.findall(r"^from (?:\.|vllm\.model_executor\.models\.)(\w+) import", code, re.M)
    files = [root / module.with_name(f"{each}.py") for each in beside]
    files = [*filter(Path.exists, files), root / "transformers_utils" / "model_arch_config_convertor.py"]
    code += "".join(file.read_text(encoding="utf-8") for file in files)
    named = re.findall(r"`(\w+)`", UNSERVED[name])
    assert named, "a sentence names what a reader can look for"
    assert all(re.search(rf"\b{each}\b", code) for each in named), named


@with_vllm
def test_vllm_has_them_and_no_file_here_serves_them() -> None:
    from vllm import ModelRegistry

    from foveate.serving.vllm.families import engines

    assert set(UNSERVED) <= set(ModelRegistry.get_supported_archs())
    assert not set(UNSERVED) & set(engines())
