"""The units of `keep`, and what a method's sites promise in each. What a call has really left is in `Report.shares`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Literal

from foveate.site import Host, Site

#: ``tokens``: visual tokens that a decoder layer holds. ``tower``: patches that a vision block works on. ``decode``: visual
#: keys and values that a decode step reads, or in the mean a denoising step. ``cache``: those that the KV cache holds after the
#: prompt. ``compute``: rows of visual tokens in a layer's FFN, times the channels that these use. All are means over the blocks
#: or layers.
Unit = Literal["tokens", "tower", "decode", "cache", "compute", "none"]


def left(unit: Unit, sites: Iterable[Site], host: Host) -> float:
    """Tell which share ``sites`` leave of what a ``unit`` counts, if each of them leaves its own share."""
    if unit == "none":
        return 1.0
    from_start = [_from_the_start(site, host) for site in sites]
    if unit == "decode" and host.steps:
        return _mean([_read_at(step, from_start, host) for step in range(host.steps)])
    from_start = [site for site in from_start if not site.step]
    if unit == "tower":
        return _mean(_in_blocks(from_start, host))
    held, cached = _in_layers(from_start, host)
    if unit == "tokens":
        return _mean(held)
    if unit == "cache":
        return _mean([_in_cache(from_start, layer, host) * share for layer, share in enumerate(cached[: host.layers])])
    inside = [site for site in from_start if site.at == ("decode" if unit == "decode" else "decoder")]
    if unit == "decode":
        return _mean([prod(s.keep for s in inside if s.layer <= layer) * x for layer, x in enumerate(cached)])
    ffn = [site for site in inside if site.part == "ffn" and site.action in ("skip", "channels")]
    return _mean([prod(s.keep for s in ffn if s.layer == layer) * x for layer, x in enumerate(held)])


def _read_at(step: int, sites: Sequence[Site], host: Host) -> float:
    """The share of the visual tokens that a layer's attention sees in a denoising step, in the mean over the layers."""
    due = [site for site in sites if site.step is None or site.step <= step]
    if host.reads_cache:
        _, cached = _in_layers([site for site in due if site.at != "cache"], host)
        freed = [prod(s.keep for s in due if s.at == "cache" and s.layer == layer) for layer in range(host.depth)]
        return _mean([made * left for made, left in zip(cached, freed)])
    before = [site.step is not None and site.step < step for site in due]  # what left there does not come back
    held, _ = _in_layers([replace(s, at="lm_entry", layer=0) if gone else s for s, gone in zip(due, before)], host)
    return _mean(held)


def _in_layers(sites: Sequence[Site], host: Host) -> tuple[list[float], list[float]]:
    """The share of the tokens that each decoder layer holds, and of those whose keys and values it makes."""
    share = prod(
        site.keep for site in sites if site.action == "reduce" and site.at not in ("decoder", "decode", "cache")
    )
    parked, held, cached = 1.0, [], []
    for layer in range(host.depth):
        here = [site for site in sites if site.at == "decoder" and not site.part and site.layer == layer]
        for site in here:
            share *= site.keep if site.action == "reduce" else 1
            parked = {"park": parked * site.keep, "restore": 1.0}.get(site.action, parked)
        held.append(share * parked)
        cached.append(share if any(site.action == "attend" for site in here) else share * parked)
    return held, cached


def _in_cache(sites: Sequence[Site], layer: int, host: Host) -> float:
    """The share of the keys and values made by a decoder layer that its cache holds after the prompt."""
    here = [site for site in sites if site.layer == layer]
    reused = [site.reuse for site in here if site.reuse is not None and site.reuse.drops_keys]
    without_keys = any(reuse.tokens == "all" or layer not in host.fixed_caches for reuse in reused)
    return prod(site.keep for site in here if site.at == "cache") * (0.5 if without_keys else 1)


def _in_blocks(sites: Sequence[Site], host: Host) -> list[float]:
    """Return the share of the patches that each vision block works on: in one that attends to parked patches, all."""
    share, parked, found = prod(site.keep for site in sites if site.at == "pixels"), 1.0, []
    for block in range(host.blocks):
        here = [site for site in sites if site.at == "tower" and site.layer == block]
        for site in here:
            share *= site.keep if site.action == "reduce" else 1
            parked = {"park": parked * site.keep, "restore": 1.0}.get(site.action, parked)
        found.append(share if any(site.action == "attend" for site in here) else share * parked)
    return found


def _from_the_start(site: Site, host: Host) -> Site:
    """Return a site whose layer is counted from the beginning."""
    n = host.blocks if site.at == "tower" else host.layers
    return replace(site, layer=site.layer + n) if site.layer < 0 else site


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / max(len(shares), 1)
