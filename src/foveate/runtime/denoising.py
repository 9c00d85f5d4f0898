"""Denoising steps: a model may write its answer in steps, each of which works on the whole of it, and not word by word.

A step may run the language model on all of the prompt again: what leaves at a site of a step is left out of the steps that
follow, where the features come in. Or it runs on a canvas that reads the cache of the prompt (`foveate.runtime.canvas`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.errors import UnsupportedSiteError
from foveate.method import Host, Site
from foveate.models.family import Denoising
from foveate.runtime.context import Action, DecoderPass
from foveate.runtime.layout import starts
from foveate.runtime.prompt import Prompt
from foveate.tokens import Reduction, Tokens


def check_step(name: str, site: Site, host: Host) -> None:
    """Raise `UnsupportedSiteError` for a site of a step that the model does not have, or of words that it does not write."""
    if host.steps and site.at == "decode":
        raise UnsupportedSiteError(
            f"{name} acts at {site}, at every generated token, and {host.family!r} writes its answer in denoising steps: act "
            f"at {'cache' if host.reads_cache else 'decoder'} sites, with a step"
        )
    if host.reads_cache and site.reuse is not None and site.reuse.drops_keys:
        raise UnsupportedSiteError(
            f"{name} acts at {site}, which leaves no keys of what is reused in the cache, and the denoising steps of "
            f"{host.family!r} read them there: reuse queries alone, or choose another method"
        )
    if site.step is None:
        return
    if site.step >= host.steps:
        how = f"in {host.steps} steps, 0 to {host.steps - 1}" if host.steps else "word by word, not in denoising steps"
        raise UnsupportedSiteError(f"{name} acts at {site}, but {host.family!r} writes its answer {how}")
    if host.reads_cache and site.at != "cache":
        raise UnsupportedSiteError(
            f"{name} acts at {site}, but the denoising steps of {host.family!r} do not run the prompt, of which they read the "
            "KV cache: act at cache sites with that step, or leave step out"
        )
    if not host.reads_cache and site.at == "cache":
        raise UnsupportedSiteError(
            f"{name} acts at {site}, but every denoising step of {host.family!r} runs the prompt again, and keeps no cache: "
            "act at the entry or before decoder layers"
        )


def begin(call: DecoderPass, prompt: Prompt | None, denoising: Denoising | None) -> None:
    """Count a forward with images as the next step of its answer, where a step is such a forward."""
    if denoising is not None and not denoising.canvas and prompt is not None:
        call.prompt, call.step = prompt, prompt.step
        prompt.step += 1


def is_due(call: DecoderPass, action: Action) -> bool:
    """Tell whether a site acts in this forward."""
    return action.site.step is None or action.site.step == call.step


def left_before(call: DecoderPass, tokens: Tokens) -> Reduction | None:
    """Return what the steps before have left of the images; None: everything."""
    gone = None if call.prompt is None else call.prompt.gone
    return None if gone is None else tokens.keep_mask(~gone[_cells(tokens)])


def note(call: DecoderPass, action: Action, tokens: Tokens, reduction: Reduction) -> None:
    """Remember what leaves at a site of a step, for the steps that follow."""
    if action.site.step is None or call.prompt is None:
        return
    if reduction.hidden is not None:
        raise UnsupportedSiteError(
            f"{action.method.name()} merges tokens at {action.site}, and the next step begins with the image as it was: drop "
            "tokens at a step, or merge at all of them (without step)"
        )
    leaves = torch.ones(len(tokens), dtype=torch.bool, device=tokens.index.device)
    leaves[reduction.keep] = False
    if tokens.marks is not None:  # new ones come anew
        leaves &= ~tokens.marks
    gone = torch.zeros(sum(tokens.spans.sizes), dtype=torch.bool, device=leaves.device)
    gone[_cells(tokens)[leaves]] = True
    call.prompt.gone = gone if call.prompt.gone is None else call.prompt.gone | gone


def _cells(tokens: Tokens) -> Tensor:
    """``(N,)`` places of tokens among those of all grids."""
    return starts(tokens.spans, tokens.index.device)[tokens.segment] + tokens.index
