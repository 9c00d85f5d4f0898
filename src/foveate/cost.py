"""FLOPs, bytes and times of a call: what was computed, next to what the stock model would have computed.

A multiply-add counts as 2. Linear layers cost ``2 * rows * weights``; attention costs ``4 * queries * keys * width`` (scores
and weighted values, the causal half included, as `torch.utils.flop_counter` counts it). Norms, activations and softmax
are left out, as they are there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from foveate import printed
from foveate.models.family import Decoder, Family, Merger, Tower
from foveate.ops.segments import offsets
from foveate.runtime.attach import host_of
from foveate.runtime.recurrent import attention_of
from foveate.runtime.reuse import spared
from foveate.runtime.shared import sources_of
from foveate.runtime.trace import BlockTrace, LayerTrace, SiteTrace, Trace
from foveate.shares import of_blocks, of_layers

Unit = Literal["tokens", "patches"]


@dataclass(frozen=True)
class Visit:
    """One visit of a site.

    Attributes:
        site, method: their names.
        before, after: how many there were of each span, and are left.
        shapes: grid ``(height, width)`` of each span.
        kept: raster indices of the survivors of each span, ``y * width + x``.
        says: what the method says here, where it is not which tokens survive.
        units: what ``before`` and ``after`` count: ``tokens``, visual ones; or ``patches``, from where single ones are set
            aside in the tower until whole tokens are back.
    """

    site: str
    method: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    kept: tuple[tuple[int, ...], ...]
    says: str = ""
    units: tuple[Unit, Unit] = ("tokens", "tokens")


@dataclass(frozen=True)
class Report:
    """What the last call did, and what the stock model would have done.

    Attributes:
        visits: every site that was visited in the tower and the prefill, in order, those of the cache as the last ones; then
            each decode site at its last step.
        visual_tokens: visual tokens of the prompt (all rows of the batch).
        layer_tokens: tokens per row that each decoder layer held in the prefill, text included.
        full_layer_tokens: the same in the stock model.
        mean_tokens: visual tokens per row and layer, averaged over the decoder layers.
        shares: what `keep` promises, by unit (`foveate.units`): the share of the stock model's that was left. Without a cache
            there is no ``cache``, before the first step of decoding no ``decode`` (of denoising steps it is the mean), and
            without a tower call no ``tower``.
        flops, full_flops: by stage: ``tower``, ``projector``, ``prefill``, ``decode``, ``head``, ``sites`` (the method's
            own work).
        kv_bytes, full_kv_bytes: held by the KV cache after the last step, measured on its tensors; and at full length. The
            states of recurrent layers, which do not grow with the prompt, are left out.
        kv_lengths: tokens in each cache entry that holds any.
        block_flops, full_block_flops: FLOPs of each vision block; ``tower`` is their sum and what is around them.
        layer_flops, full_layer_flops: FLOPs of each decoder layer in the prefill.
        seconds: wall time of ``tower``, ``prefill`` and ``decode``.
        decode_steps: tokens generated after the prefill, or denoising steps that read its cache.
        thread: name of the thread that made the call, where it was another one than that which asks for the report.
    """

    visits: tuple[Visit, ...]
    visual_tokens: int
    layer_tokens: tuple[int, ...]
    full_layer_tokens: tuple[int, ...]
    mean_tokens: float
    shares: dict[str, float]
    flops: dict[str, int]
    full_flops: dict[str, int]
    kv_bytes: int
    full_kv_bytes: int
    kv_lengths: tuple[int, ...]
    block_flops: tuple[int, ...]
    full_block_flops: tuple[int, ...]
    layer_flops: tuple[int, ...]
    full_layer_flops: tuple[int, ...]
    seconds: dict[str, float]
    decode_steps: int
    thread: str | None = None

    @property
    def flops_ratio(self) -> float:
        """FLOPs of this call over those of the stock model; 1 where that computes nothing."""
        full = sum(self.full_flops.values())
        return sum(self.flops.values()) / full if full else 1.0

    @property
    def kv_ratio(self) -> float:
        """KV bytes of this call over those of the stock model; 1 where that holds none."""
        return self.kv_bytes / self.full_kv_bytes if self.full_kv_bytes else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ratios included; without the indices of the survivors."""
        data = {**asdict(self), "flops_ratio": self.flops_ratio, "kv_ratio": self.kv_ratio}
        for visit in data["visits"]:
            del visit["kept"]
            if not visit["says"]:
                del visit["says"]
        if self.thread is None:
            del data["thread"]
        return data

    def __str__(self) -> str:
        return printed.text(self)

    def _repr_html_(self) -> str:
        return printed.html(self)


def report(model: Any, family: Family, trace: Trace) -> Report:
    """Return the report of a call from its trace."""
    base = model.get_submodule(family.base)
    tower = base.get_submodule(family.tower.module)
    decoder = base.get_submodule(family.decoder.module)
    blocks = family.tower.blocks_of(tower)
    layers: Any = decoder.get_submodule(family.decoder.layers)
    n = len(layers)

    spec, config = family.tower, model.config
    neck = [base.get_submodule(name) for name in spec.neck]
    in_neck = sum(map(_conv_weights, neck))
    convolutions = _conv_weights(tower) - in_neck
    now = {"tower": trace.patch_rows * convolutions + trace.around}
    full = {"tower": trace.full_patch_rows * convolutions + trace.full_around}
    segments = [
        trace.segments or spec.rows(config, trace.grid, i, trace.strays)
        for i in range(len(blocks) if trace.grid else 0)
    ]
    stock = [BlockTrace(i, 0, 0, lengths) for i, lengths in enumerate(segments)]
    for block_trace in stock:
        block_trace.rows = block_trace.ffn_rows = sum(block_trace.segments)
    # A tower without sites is stock.
    in_blocks, full_in_blocks = (_by_block(blocks, spec, traces) for traces in (trace.blocks or stock, stock))
    now["tower"] += sum(in_blocks)
    full["tower"] += sum(full_in_blocks)
    if spec.merger is not None and trace.grid:
        merger, patches = tower.get_submodule(spec.merger.module), sum(spec.rows(config, trace.grid, 0))
        merged = spec.merger.rows(config)
        full["tower"] += _merger_flops(merger, spec.merger, merged, patches)
        now["tower"] += _merger_flops(merger, spec.merger, merged, sum(trace.merger_rows) if trace.blocks else patches)
    output = base.get_submodule(spec.output)
    projector = _weights(output) + _own_matrices(output) + sum(map(_weights, neck)) + in_neck
    taps = [_weights(tap) for tap in base.get_submodule(spec.taps).children()] if spec.taps else []
    tail = trace.full_output_rows * sum(_weights(base.get_submodule(name)) for name in spec.tail)
    now["projector"] = trace.output_rows * projector + sum(rows * taps[i] for i, rows in trace.tap_rows) + tail
    full["projector"] = trace.full_output_rows * (projector + sum(taps)) + tail
    outside = _weights(decoder) - sum(map(_weights, layers))  # of all tokens, there or not
    in_layers: dict[str, list[tuple[int, int]]] = {}
    # Another thread may be in the middle of the next forward: of what it has logged, whole forwards.
    prefill, decode = (log[: len(log) // n * n] for log in (trace.prefill, trace.decode))
    canvas = trace.canvas[: len(trace.canvas) // n * n]  # layers built like those of the language model
    for stage, log, beside in (("prefill", prefill, []), ("decode", decode, canvas)):
        now[stage] = full[stage] = sum(each.batch * each.full_queries * outside for each in log[::n])
        in_layers[stage] = [_layer_flops(layers[i % n], family.decoder, each) for i, each in enumerate(log + beside)]
        now[stage] += sum(a for a, _ in in_layers[stage])
        full[stage] += sum(b for _, b in in_layers[stage])
    now["decode"], full["decode"] = (each["decode"] + trace.canvas_flops for each in (now, full))
    now["head"] = full["head"] = trace.head_rows * _weights(model.get_output_embeddings())
    now["sites"] = sum(visit.flops for visit in trace.sites) + trace.signal_flops
    for rows, length in trace.asides:
        aside = LayerTrace(rows, length, length, length, length, None)
        now["sites"] += rows * length * outside + sum(_layer_flops(layer, family.decoder, aside)[0] for layer in layers)
    full["sites"] = 0

    chunks = [prefill[i : i + n] for i in range(0, len(prefill), n)]
    batch = prefill[0].batch if prefill else 1
    seen = [entry.visual for entry in prefill if entry.visual is not None]
    whole = _visual(trace)
    visual = sum(seen) if seen else round(whole * n)
    shares = of_layers(trace, prefill, sources_of(layers, family.decoder, decoder.config), whole)
    if trace.grid:
        images = sum(t for t, _, _ in trace.grid)
        shares["tower"] = of_blocks(trace.blocks or stock, stock, images, spec.leading, host_of(model, family).blocks)
    return Report(
        visits=tuple(_visits(_distinct(trace.sites))),
        visual_tokens=sum(t * h * w for t, h, w in trace.views),
        layer_tokens=tuple(sum(entry.queries for entry in layer) for layer in zip(*chunks)),
        full_layer_tokens=tuple(sum(entry.full_queries for entry in layer) for layer in zip(*chunks)),
        mean_tokens=visual / n / batch,
        shares=shares,
        flops=now,
        full_flops=full,
        kv_bytes=trace.kv.bytes,
        full_kv_bytes=trace.kv.full_bytes,
        kv_lengths=trace.kv.lengths,
        block_flops=in_blocks,
        full_block_flops=full_in_blocks,
        layer_flops=tuple(sum(a for a, _ in in_layers["prefill"][i::n]) for i in range(n)),
        full_layer_flops=tuple(sum(b for _, b in in_layers["prefill"][i::n]) for i in range(n)),
        seconds={stage: trace.seconds(stage) for stage in ("tower", "prefill", "decode")},
        decode_steps=trace.decode_steps,
        thread=None if trace.thread == threading.current_thread().name else trace.thread,
    )


def _visual(trace: Trace) -> float:
    """Visual tokens of the stock model in each layer, as often as the prompts are in the call (beams, samples)."""
    if trace.arrived:
        spans = (tokens.spans for tokens, _ in trace.arrived)
        return sum({number: size for each in spans for number, size in zip(each.number, each.sizes)}.values())
    placeholders = sum(int(count) for count in trace.placeholders)
    copies = placeholders / trace.features if placeholders and trace.features else 1.0
    return sum(t * h * w for t, h, w in trace.views) * copies


def _distinct(sites: list[SiteTrace]) -> list[SiteTrace]:
    """Every visit of the prefill, and for each decode site its last one, which stands for all steps."""
    last = {site.name: site for site in sites if site.name.startswith("decode ")}
    return [site for site in sites if not site.name.startswith("decode ")] + list(last.values())


def _visits(sites: Iterable[SiteTrace]) -> Iterator[Visit]:
    waiting: Unit = "tokens"
    for site in sites:
        unit: Unit = "patches" if site.site.unit == "patch" else "tokens"
        waiting = unit if site.site.action == "park" else waiting
        yield _visit(site, (waiting if site.site.action == "restore" else unit, unit))


def _visit(site: SiteTrace, units: tuple[Unit, Unit]) -> Visit:
    site = site.of_images()
    index = site.index.tolist()
    ends = offsets(site.after)
    kept = tuple(tuple(index[a:b]) for a, b in zip(ends, ends[1:]))
    return Visit(site.name, site.method, site.before, site.after, site.shapes, kept, site.says, units)


def _weights(module: nn.Module | None) -> int:
    """2 x weights of the linear layers inside (quantised ones too: they keep ``in_features`` and ``out_features``).

    Of a layer that wraps others (an adapter beside the layer that it adds to), only those inside do work.
    """
    if module is None:
        return 0
    layers: list[Any] = [m for m in module.modules() if hasattr(m, "in_features") and hasattr(m, "out_features")]
    leaves = [m for m in layers if not any(hasattr(inner, "in_features") for inner in m.modules() if inner is not m)]
    return sum(2 * int(m.in_features) * int(m.out_features) for m in leaves) + _experts(module)


def _experts(module: nn.Module) -> int:
    """2 x weights of the experts that one token goes through, all of which are stacked in one tensor, and of the router."""
    routers: list[Any] = [m for m in module.modules() if _top_k(m)]
    if not routers:
        return 0
    convolutions = {id(m.weight) for m in module.modules() if isinstance(m, nn.Conv1d)}
    stacked = [p for p in module.parameters() if p.dim() == 3 and id(p) not in convolutions]
    router = sum(m.weight.numel() for m in routers if hasattr(m, "weight") and not hasattr(m, "in_features"))
    return 2 * int(_top_k(routers[0]) * sum(p.numel() // p.shape[0] for p in stacked) + router)


def _top_k(module: nn.Module) -> int:
    """Return how many experts a router gives each token; 0 for other modules."""
    own = getattr(module, "top_k", None)
    if own is None and hasattr(module, "per_expert_scale"):  # it asks its config
        own = getattr(getattr(module, "config", None), "top_k_experts", None)
    return own if isinstance(own, int) else 0


def _own_matrices(module: nn.Module) -> int:
    """2 x entries of the matrices that a module holds itself, not in a linear layer."""
    is_linear = hasattr(module, "in_features")
    return 0 if is_linear else sum(2 * p.numel() for p in module.parameters(recurse=False) if p.dim() == 2)


def _conv_weights(module: nn.Module) -> int:
    convolutions = [m for m in module.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    return sum(2 * m.weight.numel() for m in convolutions)


def _width(attention: Any) -> int:
    """Heads x head size of an attention module: the mean of keys and values, where these differ."""
    heads = getattr(attention, "num_heads", None) or attention.config.num_attention_heads
    if hasattr(attention, "qk_head_dim"):
        return int(heads) * int(attention.qk_head_dim + attention.v_head_dim) // 2
    return int(heads) * int(attention.head_dim)


def _by_block(blocks: Sequence[nn.Module], spec: Tower, traces: Sequence[BlockTrace]) -> tuple[int, ...]:
    """FLOPs of each block, over all calls of the tower; without one, of none."""
    found = [0] * (len(blocks) if traces else 0)
    for trace in traces:
        found[trace.block] += _block_flops(blocks[trace.block], spec, trace)
    return tuple(found)


def _block_flops(block: nn.Module, spec: Tower, trace: BlockTrace) -> int:
    attention: Any = block.get_submodule(spec.attention)
    in_attention, width = _weights(attention), _width(attention)
    in_ffn = trace.ffn_rows * (_weights(block) - in_attention)
    if trace.keys is None:
        return trace.rows * in_attention + in_ffn + _pairs(trace.segments, trace.segments) * 4 * width
    query: Any = attention.get_submodule(spec.query)
    in_query = 2 * int(query.in_features) * width if spec.fused else _weights(query)
    in_end = _weights(attention.get_submodule(spec.attention_end))
    projections = trace.keys.rows * (in_attention - in_query - in_end) + trace.keys.queries * in_query
    pairs = _pairs(trace.segments, trace.keys.segments)
    return projections + trace.rows * in_end + in_ffn + pairs * 4 * width


def _merger_flops(merger: nn.Module, spec: Merger, group: int, rows: int) -> int:
    if group == 1:  # it does not run
        return 0
    attention: Any = merger.get_submodule(spec.attention)
    in_attention = _weights(attention)
    return rows * (in_attention + 4 * group * _width(attention)) + rows // group * (_weights(merger) - in_attention)


def _pairs(queries: Any, keys: Any) -> int:
    """Pairs of query and key, summed over segments; of each the lengths, or the cumulative lengths on a device."""
    q, k = (each.diff().tolist() if isinstance(each, Tensor) else each for each in (queries, keys))
    return sum(int(a) * int(b) for a, b in zip(q, k))


def _layer_flops(layer: nn.Module, spec: Decoder, trace: LayerTrace) -> tuple[int, int]:
    weights, attention = _weights(layer), attention_of(layer, spec)
    saved = _saved_in_parts(layer, spec, trace)
    if attention is None:
        module = layer.get_submodule(spec.recurrent)
        now, full = (n * weights + spec.recurrence(module, n) for n in (trace.queries, trace.full_queries))
        return trace.batch * now - saved, trace.batch * full
    width = 4 * _width(attention)
    queries = trace.queries if trace.members is None else trace.members
    anew = _weights(getattr(attention, spec.latent, None))
    weights -= anew
    now = trace.batch * (trace.queries * weights + trace.keys * (anew + queries * width)) - saved
    if trace.reuse is not None:
        now -= trace.reused * sum(
            _weights(attention.get_submodule(name)) for name in spared(attention, spec, trace.reuse)
        )
    full = trace.full_queries * weights + trace.full_keys * (anew + trace.full_queries * width)
    return now, trace.batch * full


def _saved_in_parts(layer: Any, spec: Decoder, trace: LayerTrace) -> int:
    """Return what a layer has not computed of the rows that it has."""
    parts, rows, saved = trace.parts, trace.batch * trace.queries, 0
    if parts is None:
        return 0
    if parts.ffn is not None:
        in_ffn = _weights(layer.get_submodule(spec.ffn))
        saved += (rows - parts.ffn) * in_ffn
        if parts.channels is not None:
            partly, some, every = parts.channels
            saved -= partly * (in_ffn // every) * some
    if parts.keys is not None and parts.queries is not None and parts.kernel is not None:
        attention: Any = layer.get_submodule(spec.attention)
        of_queries = _weights(attention.get_submodule(spec.query)) + _weights(
            attention.get_submodule(spec.attention_end)
        )
        saved += (rows - parts.queries) * of_queries + (rows - parts.keys) * (_weights(attention) - of_queries)
        saved += trace.batch * (trace.queries - parts.kernel) * trace.keys * 4 * _width(attention)
    return saved
