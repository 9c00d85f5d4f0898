"""The shares that a call has left of each unit of `keep` (`foveate.units`) are counted on its trace."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.runtime.trace import BlockTrace, LayerTrace, SiteTrace, Trace


def of_layers(trace: Trace, prefill: Sequence[LayerTrace], sources: Sequence[int], full: float) -> dict[str, float]:
    """Tell which shares the language model has left of each unit.

    Args:
        prefill: the layers of the prompt's forwards, forward after forward.
        sources: the layer whose keys and values each layer attends to.
        full: visual tokens that the stock model holds in each layer.
    """
    n = len(sources)
    forwards = [prefill[i : i + n] for i in range(0, len(prefill), n)]
    if not full or not forwards or all(layer.visual is None for layer in prefill):
        return {"tokens": 1.0, "compute": 1.0, "cache": 1.0, **({"decode": 1.0} if trace.decode_steps else {})}
    layers = list(zip(*forwards))
    held = [sum(each.visual or 0 for each in layer) for layer in layers]
    found = {"tokens": sum(held) / n / full, "compute": sum(sum(map(_in_ffn, layer)) for layer in layers) / n / full}
    cached = [sum((each.visual or 0) + each.lent for each in layer) for layer in layers]
    made = list(cached)
    for visit in trace.sites:
        if visit.site.at == "cache" and not visit.site.step:
            cached[visit.site.layer] = sum(visit.after)
    kv = trace.kv
    stored = [cached[i] * row / full_row for i, row, full_row in zip(kv.layers, kv.visual_row, kv.full_row) if i < n]
    if stored:
        found["cache"] = sum(stored) / len(stored) / full
    steps = len(trace.canvas) // n
    if steps:  # of layers that nobody watches, what they have made of the prompt
        read_in_all = sum(
            made[i % n] if each.visual is None else each.visual for i, each in enumerate(trace.canvas[: steps * n])
        )
        found["decode"] = read_in_all / steps / n / full
    elif trace.decode_steps:
        read = [cached[source] * _seen(trace.sites, i) for i, source in enumerate(sources)]
        found["decode"] = sum(read) / n / full
    return found


def _in_ffn(layer: LayerTrace) -> float:
    """Count the visual tokens that go through a layer's FFN, each counted by the share of the channels that it uses."""
    through: float = layer.visual or 0
    if layer.parts is None or layer.parts.ffn is None:
        return through
    through -= layer.batch * layer.queries - layer.parts.ffn
    if layer.parts.channels is not None:
        partly, some, every = layer.parts.channels
        through += partly * some / every
    return through


def _seen(sites: Sequence[SiteTrace], layer: int) -> float:
    """Tell which share of a layer's cached visual tokens the last step of decoding has seen."""
    last = {visit.site: visit for visit in sites if visit.site.at == "decode" and visit.site.action == "reduce"}
    share = 1.0
    for site, visit in last.items():
        if site.layer <= layer:
            share *= sum(visit.after) / max(sum(visit.before), 1)
    return share


def of_blocks(blocks: Sequence[BlockTrace], stock: Sequence[BlockTrace], images: int, leading: int, n: int) -> float:
    """Tell which share of the patches the first ``n`` vision blocks have worked on, in the mean.

    Args:
        blocks, stock: what each block did in each call, and what it does in the stock model.
        images: of all calls; each has ``leading`` special tokens at the front, which are no patches.
    """
    rows = [0] * len(stock)
    for block in blocks:
        rows[block.block] += block.rows if block.keys is None else block.keys.rows
    specials = images * leading
    shares = [(now - specials) / (full.rows - specials) for now, full in zip(rows[:n], stock)]
    return sum(shares) / len(shares) if shares else 1.0
