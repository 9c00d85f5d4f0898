"""The tables of docs/families.md and docs/sites.md, from what families declare and sites give.

``python tools/family_tables.py`` writes them; ``python tools/pages/lists.py``, too, once it has asked which methods run where.
Numbers of blocks are those of transformers' default config of a family, where that is one of its models; a model's own config
says its own.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

import foveate.runtime.signals.kinds  # noqa: F401 (each kind of signal makes itself known)
from foveate.lab.declared import title
from foveate.methods import own_methods
from foveate.models import list_families
from foveate.models.family import Family
from foveate.models.refused import REFUSED
from foveate.runtime.hosts import kinds_of
from foveate.runtime.signals.kind import KINDS, kinds_at

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / "docs" / f"{name}.md" for name in ("families", "sites"))
PAIRS = ROOT / "tools" / "pages" / "pairs.json"
MARKED = re.compile(r"(<!-- (\w+): tools/family_tables.py -->\n).*?(<!-- end -->)", re.S)
PLACES = {
    "pixels": "before patch embedding; every tile or frame of a call gets one size in padded towers",
    "tower": "before any block, and between its attention and its FFN; parking, attending, restoring and appending, too",
    "tower_output": "after the last block that is read",
    "lm_entry": "where features and text meet; appending, too",
    "decoder": "before any layer, and its parts; parking, attending and restoring, too, and reusing queries and keys",
    "cache": "the cache of any layer with keys of its own, after the prompt or at a denoising step; not where it slides",
    "decode": "the cache, at every generated token; one such site on a model; not where layers slide",
}
#: what a family's checkpoints have, where the default config does not fit together or is another family's
CONFIGS: dict[str, dict[str, Any]] = {
    "aya_vision": {
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16}
        | {"num_hidden_layers": 27, "intermediate_size": 4304, "image_size": 364, "patch_size": 14}
    },
    "cohere_compass": {
        "text_config": {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20]}
            }
        }
    },
    "deepseek_ocr2": {
        "text_config": {
            "hidden_size": 1280,
            "num_attention_heads": 10,
            "num_hidden_layers": 12,
            "num_experts_per_tok": 6,
        }
        | {"mlp_layer_types": ["dense"] + ["sparse"] * 11}
    },
    "emu3": {"vocabulary_map": {"<image>": 151_649, "<|extra_200|>": 151_846}},
    "fast_vlm": {"vision_config": {"model_type": "resnet", "hidden_size": 3072}},  # in the place of timm's
    "gemma3": {"vision_config": {"image_size": 896, "patch_size": 14, "num_hidden_layers": 27}},
    "gemma4": {"vision_config": {}},
    "gemma4_unified": {"vision_config": {}},
    "hunyuan_vl": {
        "text_config": {"head_dim": 128}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 16, 16, 16]}}
    },
    "lfm2_vl": {
        "text_config": {"num_hidden_layers": 16}
        | {"layer_types": ["conv", "conv", "full_attention"] * 3 + ["conv", "full_attention"] * 3 + ["conv"]}
    },
    "perception_lm": {"vision_config": {"model_type": "clip_vision_model", "model_args": {"embed_dim": 1024}}},
    "step3p7": {
        "text_config": {"layer_types": ["full_attention", *["sliding_attention"] * 3] * 11 + ["full_attention"]}
        | {"sliding_window": 512}
        | {
            "rope_parameters": {
                f"{k}_attention": {"rope_type": "default", "rope_theta": 1e4} for k in ("full", "sliding")
            }
        }
    },
    "diffusion_gemma": {
        "vision_config": {"model_type": "gemma4_vision"},
        "text_config": {
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 704,
        },  # which it has no defaults for
    },
    "idefics3": {"text_config": {"model_type": "llama", "vocab_size": 128_259}},  # which has room for its padding token
    "smolvlm": {"text_config": {"model_type": "llama", "vocab_size": 128_259}},
    "ovis2": {"vision_config": {"hidden_stride": 2}},
    "llava_pixtral": {
        "vision_config": {"model_type": "pixtral"},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "llava_siglip": {
        "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 26},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
}


def config_of(family: Family) -> Any:
    """The default config of a family."""
    return CONFIG_MAPPING[family.model_type](**CONFIGS.get(family.name, {}))


def family_table() -> str:
    """One row per family, for whoever has a model."""
    asked = json.loads(PAIRS.read_text(encoding="utf-8"))
    rows = [
        (title(family), _types(family), _inputs(family), without(asked.get(family.name, {})))
        for family in list_families().values()
    ]
    return _table(("model", "`model_type`", "inputs", "methods that do not run"), rows)


def built_table() -> str:
    """One row per family, for whoever writes a method or a family."""
    head = ("family", "one token is", "blocks with sites", "stock code in between", "refused")
    return _table(head, map(_built, list_families().values()))


def without(asked: dict[str, dict[str, Any]]) -> str:
    """What of the methods does not run on a family, and what runs with other depths than its defaults only."""
    classes = own_methods()
    no = [f"`{classes[name].__name__}`" for name, told in asked.items() if name in classes and told["options"] is None]
    depths: dict[str, list[str]] = {}
    for name, told in asked.items():
        for option, value in (told["options"] or {}).items():
            if name in classes:
                depths.setdefault(f"`{option}={value}`", []).append(f"`{classes[name].__name__}`")
    parts = [", ".join(no), *(f"only with {said}: {', '.join(names)}" for said, names in depths.items())]
    return "; ".join(filter(None, parts)) or "none"


def site_table() -> str:
    """One row per place, for all families."""
    rows = [
        (f"`{at}`", where, ", ".join(f"`{name}`" for name in sorted(kinds_at(at))) or "none")
        for at, where in PLACES.items()
    ]
    return _table(("place", "where", "signals"), rows)


def signal_table() -> str:
    """One row per kind of signal, in the words of its class."""
    rows = []
    for name, kind in sorted(KINDS.items()):
        said, *_ = (inspect.getdoc(kind) or "").split("\n\n")
        rows.append((f"`{name}`", re.sub(r"``(.+?)``", r"`\1`", " ".join(said.split()))))
    return _table(("signal", "what it is"), rows)


def _types(family: Family) -> str:
    """What `config.json` says of its models."""
    if family.name == family.model_type:
        return ", ".join(f"`{name}`" for name in family.types)
    return f"`{family.model_type}`, here called `{family.name}`"


def _inputs(family: Family) -> str:
    inputs = ", ".join("videos" if "video" in name else "images" for name in family.modalities)
    return f"{inputs}, in the language model" if family.tower.unseen else inputs


def _built(family: Family) -> tuple[str, ...]:
    config = config_of(family)
    if family.tower.unseen:
        names = ", ".join(f"`{name}`" for name in (family.name, *family.also))
        return names, "a feature", "none", family.tower.unseen, "; ".join(refused(family))
    tower, vision = family.tower, config.vision_config
    blocks = getattr(vision, "num_hidden_layers", None) or vision.depth
    seen, unit = tower.last_block(config) + 1, tower.unit(config)
    return (
        ", ".join(f"`{name}`" for name in (family.name, *family.also)),
        "a patch" if unit == 1 else f"{unit} patches",
        f"0 to {seen - 1} of {blocks}" if seen < blocks else f"all {blocks}",
        "; ".join(_between(family)) or "nothing",
        "; ".join(refused(family)) or "nothing",
    )


def _between(family: Family) -> Iterable[str]:
    tower, decoder, config = family.tower, family.decoder, config_of(family)
    if tower.fused:
        yield "one layer makes queries, keys and values"
    if tower.merger is not None:
        yield f"{tower.merger.rows(config)} patches become one row where block {tower.merger.block(config)} begins"
    if tower.taps:
        yield "features of several blocks" + (", added between decoder layers" if decoder.deepstack else "")
    if decoder.recurrent:
        yield "decoder layers that carry a state in place of attention"
    if decoder.shared:
        yield "in some models decoder layers that attend to the keys of earlier ones"
    if tower.pooler:
        yield "the tower pools patches"
    elif tower.joins:
        inside = tower.joins == "inside" or tower.neck
        where = "inside" if inside else "before"
        pooled = tower.joins == "inside" and tower.merger is None
        yield "the projector pools patches" if pooled else f"patches are joined {where} the projector"
    elif tower.neck:
        yield "a norm and a convolution before the merger"
    if family.denoising is not None and family.denoising.canvas:
        yield "a canvas that reads the KV cache in denoising steps"
    for name, arrangement in tower.arrangements.items():
        if "video" in name:
            yield "video frames are pooled" + (" before the projector" if arrangement.pool else " after the projector")
        else:
            yield "tiles are put together, with newlines"


def refused(family: Family) -> Iterable[str]:
    """What a method or a call cannot ask of a family."""
    config = config_of(family)
    if family.tower.unseen:
        yield "`pixels`, `tower` and `tower_output` sites"
    elif family.tower.resize is None:
        yield "`pixels` sites"
    if not family.tower.leading:
        yield "`cls_row`"
    if family.tower.unit(config) > 1:
        yield "dropping single patches"
    if any("sliding" in kind for kind in kinds_of(config)):
        yield "`decode` sites"
        yield "`cache` sites of sliding layers"
    if family.decoder.recurrent:
        yield "signals of attention from decoder layers without"
    if family.decoder.shared:
        yield "decoder sites from the first layer on that has no keys of its own"
    if family.tower.merger is not None:
        yield "parking where its tower merges"
    if family.denoising is not None and family.denoising.canvas:
        yield "at a denoising step all but `cache` sites"
    for name in family.decoder.complete:
        yield f"`output_{name}=True` where tokens are gone"


def refusal_table() -> str:
    """One row per family that is refused."""
    return _table(("model type", "because"), ((f"`{name}`", reason) for name, reason in sorted(REFUSED.items())))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(page: str) -> str:
    """``page`` with its tables as they should be."""
    tables = {
        "families": family_table,
        "built": built_table,
        "sites": site_table,
        "signals": signal_table,
        "refused": refusal_table,
    }
    return MARKED.sub(lambda found: found[1] + "\n" + tables[found[2]]() + "\n" + found[3], page)


def write() -> None:
    """All tables into their pages."""
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
