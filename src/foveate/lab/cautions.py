"""What a person should know before an answer is believed: which model gives it, and what that model cannot know."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from foveate.lab import checks, needs
from foveate.lab.checks import REFERENCES, SMOLLM2
from foveate.method import Host, Method, Site
from foveate.signal import Signal

#: In the small reference models, the first decoder layer whose text attends to the image.
LOOKS = 3
#: Kinds of signals that say what text attends to in the layer before the site, and in that to come.
_BEHIND, _AHEAD = ("last_row", "text_rows"), ("next_row", "next_rows", "unrotated_row")


def about_model(name: str, model: Any, processor: Any, prompts: Iterable[str]) -> list[str]:
    """One line on a reference model, or on words that the tokenizer of any other has no token for."""
    unknown = unknown_words(processor, prompts)
    words = ", ".join(map(repr, unknown[:8])) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
    if not is_reference(name):
        return [f"note: {name} has no token for {words} of the prompt"] if unknown else []
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    knows = "that reads English and has seen drawn scenes alone"
    if is_small(name):
        knows = f"that knows drawn scenes and {len(needs.reference().vocabulary.WORDS)} words"
    missing = f"; of what is asked it does not know {words}" if unknown else ""
    return [
        f"note: {name} answers, a model of {size:.0f} million parameters {knows}{missing}. "
        "For photographs give a real one, such as --model Qwen/Qwen2.5-VL-3B-Instruct"
    ]


def about_method(name: str, method: Method, host: Host) -> list[str]:
    """One line where a method ranks by attention of text that does not look at the image yet, in a small reference model."""
    if not is_small(name):
        return []
    for part in method.resolve(host).parts():
        for site in part.sites(host):
            if _blind(site):
                later = f"say --option layer={LOOKS + 1}" if hasattr(part, "layer") else "choose a later layer"
                return [
                    f"warning: {part.name()} ranks by the attention of text before layer {site.layer} (the first is 0); the "
                    f"text of {name} begins to look at the image at its fourth layer: {later}, or ask another model"
                ]
    return []


def is_reference(name: str) -> bool:
    """Whether a name, or a folder, is that of a reference model."""
    return name in REFERENCES or checks.is_run(name) or is_small(name)


def is_small(name: str) -> bool:
    """Whether it is that of one of the two that know a closed vocabulary."""
    if name in REFERENCES:
        return REFERENCES[name] != SMOLLM2
    if not needs.is_there("foveate_reference") or not Path(name).is_dir():
        return False
    return Path(name).resolve() in [path.resolve() for path in needs.reference().PATHS.values()]


def unknown_words(processor: Any, prompts: Iterable[str]) -> list[str]:
    """The words of the prompts that become the tokenizer's token for what it does not know, each once."""
    tokenizer = getattr(processor, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return []
    words = dict.fromkeys(word for prompt in prompts for word in re.findall(r"\w+|[^\w\s]", prompt))
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]


def _blind(site: Site) -> bool:
    """Whether a site asks what text attends to in a layer of a small reference model that does not look yet."""
    if site.at != "decoder":
        return False
    for signal in site.signals:
        address = signal if isinstance(signal, Signal) else Signal(signal)
        by_text = address.kind in _BEHIND or (address.kind == "received" and address.rows in ("text", "question"))
        if address.at or not (by_text or address.kind in _AHEAD):
            continue
        layer = site.layer if address.kind in _AHEAD else site.layer - 1 if address.layer is None else address.layer
        if 0 <= layer < LOOKS:
            return True
    return False
