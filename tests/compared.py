"""What the properties of a method compare: what it is, what calls gave, and what they took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import tiny
import torch
from calls import (
    LOGITS,
    ROWS,
    close,
    counted,
    generate,
    held,
    longest,
    text_of,
)
from torch import Tensor

import foveate
from foveate import Host, Method, Site


def sites_of(method: Method) -> list[Site]:
    """Where it acts in a model like the tiny ones."""
    return list(method.sites(Host("llava", tiny.BLOCKS, tiny.LAYERS, has_cls=True)))


def depends_on_text(method: Method) -> bool:
    """Whether a longer prompt may choose other tokens: the choice follows its text, or is made anew at every step."""
    guides = {
        "last_row",
        "text_rows",
        "text",
        "received",
        "next_row",
        "next_rows",
        "text_pass",
        "text_ids",
        "unrotated_row",
    }
    return any(
        site.at in ("decode", "cache")
        or site.into == "generated"  # which a longer prompt has no more of
        or (site.at in ("decoder", "lm_entry") and guides & {getattr(each, "kind", each) for each in site.signals})
        for site in sites_of(method)
    )


def decides_per_token(method: Method) -> bool:
    """Whether parts of an image are treated as the whole is: it acts before the language model, or there on all or none."""
    inside = [site for site in sites_of(method) if site.at in ("lm_entry", "decoder", "cache")]
    moves = any(isinstance(part, foveate.OIM) for part in method.parts())  # to places that another chunk may bring
    return all(site.keep in (0.0, 1.0) for site in inside) and not moves


@dataclass(frozen=True)
class Said:
    """What a model says: logits of the text of some batches, and what it generates for the first of them."""

    prompts: list[Tensor]
    logits: tuple[Tensor, ...]
    ids: Tensor
    held: list[int]

    @property
    def numbers(self) -> list[Tensor]:
        return [*self.prompts, *self.logits, self.ids]


def said(family: str, model: Any, *batches: dict[str, Tensor]) -> Said:
    """Call a model, and have it generate."""
    with torch.no_grad():
        out = generate(model, batches[0], **LOGITS)
        prompts = [model(**each).logits[text_of(family, each)] for each in batches]
    return Said(
        prompts,
        out.logits,
        out.sequences,
        [0 if each.is_sliding else held(each, longest(batches[0])) for each in tiny.entries(out.past_key_values)],
    )


@lru_cache(maxsize=2)
def usual(family: str, method: Method) -> Said:
    """What is said with sdpa of the usual batch, and of its first row alone: tests of one method run one after another."""
    batches = tiny.inputs(family, ROWS[family]), tiny.inputs(family, ROWS[family], only=0)
    with foveate.compress(tiny.model(family), method):
        return said(family, tiny.model(family), *batches)


def same(ours: Said, reference: Said) -> None:
    """The same up to rounding."""
    for a, b in zip(ours.numbers, reference.numbers, strict=True):
        close(a, b)


@dataclass(frozen=True)
class Ran:
    """What a call took: FLOPs, and what is in the cache then."""

    flops: int
    bytes: int
    lengths: tuple[int, ...]


def ran_by(call: Callable[[], Any]) -> Ran:
    outs: list[Any] = []
    flops = counted("sdpa", lambda: outs.append(call()))
    entries = tiny.entries(outs[0].past_key_values)
    held = sum(entry.keys.nbytes + entry.values.nbytes for entry in entries)
    return Ran(flops, held, tuple(entry.keys.shape[2] for entry in entries))


@cache
def prompted(family: str) -> Ran:
    return ran_by(lambda: tiny.model(family)(**tiny.inputs(family, ROWS[family])))


@cache
def generated(family: str) -> Ran:
    return ran_by(lambda: two_words(tiny.model(family), tiny.inputs(family, ROWS[family])))


def two_words(model: Any, batch: dict[str, Tensor]) -> Any:
    return model.generate(**batch, max_new_tokens=2, do_sample=False, bad_words_ids=[[i] for i in range(9)], **LOGITS)
