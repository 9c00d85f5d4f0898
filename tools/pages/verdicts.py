"""Which methods vLLM serves, and why not the others: what a plan for serving says of each (`foveate.serving.plan`)."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

from repository import ROOT
from transformers import AutoConfig

from foveate.errors import FoveateError
from foveate.methods import method_class, own_methods
from foveate.models import list_families
from foveate.runtime.engines import host_with
from foveate.serving.plan import Plan, make_plan

ENGINES = ROOT / "src" / "foveate" / "serving" / "vllm" / "families"
NAMES = {
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "idefics3": "Idefics3",
    "internvl": "InternVL",
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "mistral3": "Mistral 3",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen2_vl": "Qwen2-VL",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5 MoE",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL MoE",
    "smolvlm": "SmolVLM",
}


class Verdict(NamedTuple):
    """What becomes of a method in vLLM, as it is by default.

    Attributes:
        served: family -> its plan.
        refused: sentence -> the families that it is about.
    """

    served: dict[str, Plan]
    refused: dict[str, list[str]]


def table() -> str:
    """A line for every method."""
    rows = [["method", "served", "acts", "asks for, or why not"], ["---"] * 4]
    for name, cls in own_methods().items():
        found = verdict(name)
        rows.append([f"`{cls.__name__}`", _on(found), _where(found), " ".join([*_asks(found), *_reasons(found)])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@cache
def verdict(method: str) -> Verdict:
    """Ask for a plan in a model of each family that is served."""
    served: dict[str, Plan] = {}
    refused: dict[str, list[str]] = {}
    for name, config in _configs().items():
        family = list_families()[name]
        host = host_with(family, config, config.get_text_config().num_hidden_layers)
        try:
            served[name] = make_plan(method_class(method)(), host, family, config)
        except FoveateError as error:
            refused.setdefault(str(error), []).append(name)
    return Verdict(served, refused)


@cache
def _configs() -> dict[str, Any]:
    """Family -> config of a model, as transformers has it by default."""
    names = sorted(path.stem for path in ENGINES.glob("*.py") if path.stem in list_families())
    return {name: AutoConfig.for_model(list_families()[name].model_type) for name in names}


def _on(found: Verdict) -> str:
    without = [NAMES[name] for name in _configs() if name not in found.served]
    if not found.served:
        return "no"
    return f"not on {' and '.join(without)}" if without else "yes"


def _where(found: Verdict) -> str:
    places = {place: None for plan in found.served.values() for place in plan.places}
    return ", ".join(places)


def _asks(found: Verdict) -> list[str]:
    return ["`--no-enable-chunked-prefill`."] if any(plan.whole for plan in found.served.values()) else []


def _reasons(found: Verdict) -> list[str]:
    return [re.sub(r"^(\w+)", r"`\1`", reason.rstrip(".").replace("|", "\\|")) + "." for reason in found.refused]
