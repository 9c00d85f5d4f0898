"""What a person should know before an answer is believed: which model gives it, and what that model cannot know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.lab import checks, needs, terminal
from foveate.lab.checks import REFERENCES, SMOLLM2
from foveate.method import Host, Method, Site
from foveate.methods.dmllm import DMLLM
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


def about_methods(name: str, methods: Sequence[Method], host: Host, videos: bool = True) -> list[str]:
    """What to know of methods before a model is asked with them.

    That they rank by attention of text which does not look at the image yet, in a small reference model; that they are for
    models of another kind; and that they are for videos, where none is asked about (``videos``).
    """
    parts = [part for method in methods for part in method.resolve(host).parts()]
    lines = []
    for part in {part.name(): part for part in parts}.values():
        if part.temporal and not videos:
            lines.append(
                f"note: {part.name()} compares the frames of a video, and none is asked about: with an image it does little "
                "or nothing"
            )
        if isinstance(part, DMLLM) and not host.steps:
            lines.append(
                f"note: {part.name()} is for models that write in denoising steps, and this one writes word by word: here "
                f"it acts at {' and '.join(map(str, part.sites(host)))}, with {_share(part, host)}"
            )
    return [*lines, *_of_blind(name, parts, host)]


def say(name: str, methods: Sequence[Method], host: Host, videos: bool = True) -> None:
    """`about_methods` on the terminal, each line once in a command."""
    for line in about_methods(name, methods, host, videos):
        terminal.warn_once(line)


def _of_blind(name: str, parts: Sequence[Method], host: Host) -> list[str]:
    """A line on methods that rank by attention of text that does not look at the image yet, in a small reference model."""
    first = {part.name(): site.layer for part in parts for site in reversed(part.sites(host)) if _blind(site)}
    if not is_small(name) or not first:
        return []
    layers = sorted({*first.values()})
    names = list(first) if len(first) <= 3 else [*list(first)[:3], f"{len(first) - 3} other methods"]
    who = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
    advice = {_later(part, host, len(parts) > 1) for part in parts if part.name() in first}
    what = advice.pop() if len(advice) == 1 else "choose later layers"
    return [
        f"warning: {who} rank{'s' if len(first) == 1 else ''} by the attention of text before layer "
        f"{' or '.join(map(str, layers))} (the first is 0); the text of {name} begins to look at the image at its fourth "
        f"layer: {what}, or ask another model"
    ]


def _later(part: Any, host: Host, several: bool) -> str:
    """What makes a method rank later."""
    try:
        if not any(map(_blind, replace(part, layer=LOOKS + 1).sites(host))):
            return f"say --option {f'{part.name()}.' * several}layer={LOOKS + 1}"
    except (FoveateError, TypeError):  # it has no such option, or other options that say where
        pass
    if getattr(part, "schedule", None) is not None:
        return f"give a schedule that begins at layer {LOOKS + 1} or later"
    return "choose a later layer"


def _share(part: Method, host: Host) -> str:
    """How much is left from the first site of a method on, in words."""
    share = part.sites(host)[0].keep
    return "no visual token after it" if share == 0 else f"{share:.0%} of the visual tokens after it"


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
