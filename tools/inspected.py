"""How many facts of the families `foveate families --inspect` finds by itself: ``python tools/inspected.py [FAMILY ...]``.

A fact is a field of a family's file that has another value than its default; the name of the type is given and does not count.
A function is right if it gives on the tiny model what the family's gives, and where that takes a call, if there is one at all.
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, logging
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from foveate.errors import FoveateError
from foveate.lab.inspection import proposal, tiny
from foveate.models import list_families
from foveate.models.family import Decoder, Family, Tower

#: the families that the rules were written against, and those that were there besides; all others came after the rules
WRITTEN_FOR = (
    *("llava", "llava_siglip", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"),
    *("internvl", "idefics3", "gemma3", "mistral3"),
)
SEEN_LATER = (
    *("gemma4", "glm46v", "glm4v_moe", "llava_next_video", "llava_onevision", "llava_pixtral", "minicpmv4_6", "ovis2"),
    *("paligemma", "qwen2_5_omni_thinker", "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_vl_moe", "smolvlm"),
)
GIVEN = ("model_type", "alias", "also", "tower", "decoder")
#: functions of a config, and those of which it only counts whether there is one
OF_CONFIG = ("unit", "last_block", "kept_rows")
THERE = ("resize", "segments", "order", "recurrence", "around", "padded", "patches", "arrangements")


def facts_of(family: Family) -> dict[str, tuple[type, Any]]:
    """The facts of a family by their full names."""
    found: dict[str, tuple[type, Any]] = {}
    for name, spec, holder in (
        ("family", Family, family),
        ("tower", Tower, family.tower),
        ("decoder", Decoder, family.decoder),
    ):
        for field in fields(spec):
            value = getattr(holder, field.name)
            usual = proposal.default(spec, field.name)
            if field.name not in GIVEN and value is not usual and value != usual:
                found[f"{name}.{field.name}"] = (spec, value)
    return found


def is_right(name: str, value: Any, spec: type, found: proposal.Proposal) -> bool:
    """Whether the proposal says what the family says."""
    owner, field = name.split(".")
    said = getattr(found, owner).get(field, proposal.default(spec, field))
    if field in OF_CONFIG:
        return bool(said == value(found.config))
    if field == "grid":
        args, kwargs = found.call
        return list(said) == list(value(found.config, args, kwargs))
    if field == "merger":
        return bool(said == value.module)
    if field == "arrangements":
        return bool(said) and said is not proposal.default(spec, field)
    if field in THERE:
        return said is True
    return bool(said == value)


def measure(family: Family, config: Any) -> tuple[int, list[str], str]:
    """How many facts there are, those that are wrong, and what stood in the way."""
    facts = facts_of(family)
    try:
        found = proposal.inspect_config(tiny.shrunk(config))
    except FoveateError as error:
        return len(facts), list(facts), str(error)
    wrong = []
    for name, (spec, value) in facts.items():
        try:
            right = is_right(name, value, spec, found)
        except Exception as error:  # a function of the family that does not take what was proposed
            wrong.append(f"{name} ({type(error).__name__})")
            continue
        if not right:
            wrong.append(name)
    return len(facts), wrong, ""


def main(names: list[str]) -> None:
    """Print a line a type, and the sums of those that the tool was written for, of the other old ones, and of new ones."""
    logging.set_verbosity_error()
    config_of = runpy.run_path(str(Path(__file__).with_name("family_tables.py")))["config_of"]
    sums = {"written for": [0, 0], "seen later": [0, 0], "new": [0, 0]}
    for family in list_families().values():
        if family.denoising is not None or family.tower.unseen:  # called in another way; nothing is said of its tower
            continue
        for kind in (family.name, *family.also):
            model_type = family.model_type if kind == family.name else kind
            if (names and kind not in names) or model_type not in CONFIG_MAPPING or model_type not in CLASSES:
                continue
            config = config_of(family) if kind == family.name else CONFIG_MAPPING[kind]()
            count, wrong, why = measure(family, config)
            group = "written for" if kind in WRITTEN_FOR else "seen later" if kind in SEEN_LATER else "new"
            sums[group][0] += count - len(wrong)
            sums[group][1] += count
            print(
                f"{kind:<24} {group:<12} {count - len(wrong):>2} of {count:<2}  {why or ', '.join(wrong)}", flush=True
            )
    for group, (right, total) in sums.items():
        if total:
            print(f"{group}: {right} of {total} facts, {right / total:.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])
