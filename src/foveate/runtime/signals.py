"""Reading attention without eager attention, and without renaming the model's implementation.

Several models compare ``config._attn_implementation`` with a string, so the config must stay as it is. Instead, each
attention module of which something is asked gets a view of its config that answers ``"foveate|" + base`` to that one
question, and one neutral registry entry per base calls the original kernel and hands queries, keys and values to a
`Probe`. A row costs ``O(H K d)``; attention received is a chunked column sum.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from foveate.errors import UnsupportedModelError
from foveate.runtime.layout import Packed, Rows, take_rows
from foveate.runtime.masks import rows_of
from foveate.runtime.parking import Attending
from foveate.tokens import Tokens

if TYPE_CHECKING:
    from foveate.runtime.queries import Queries

PREFIX = "foveate|"
_CHUNK = 1024  # queries per chunk of the column sum: bounds its memory to H * 1024 * K floats


class ConfigView:
    """A config that differs from the real one in the name of its attention implementation only."""

    def __init__(self, config: Any, probe: Probe) -> None:
        self.__dict__["_foveate"] = (config, probe)

    @property
    def _attn_implementation(self) -> str:
        return PREFIX + real_implementation(self._foveate[0])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_foveate":
            raise AttributeError(name)
        return getattr(self.__dict__["_foveate"][0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._foveate[0], name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._foveate[0], memo)


class _ModuleView:
    """An attention module whose config is the real one (flash kernels look their implementation up by its name)."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def real_implementation(config: Any) -> str:
    """The attention implementation behind a config or a view of it."""
    if isinstance(config, ConfigView):
        config = config._foveate[0]
    return str(config._attn_implementation or "eager")


@dataclass
class Seen:
    """What one attention module computed in one forward; a packed tower calls the kernel once per segment.

    Attributes:
        keys, values: ``(B, H, K, d)`` each call.
        rows: name -> ``(B, H or 1, R, K)`` attention of chosen queries, each call.
        received: ``(B, K)`` each call, mean over heads and queries.
        flops: spent on rows and column sums.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    received: list[Tensor] = field(default_factory=list)
    flops: int = 0


@dataclass
class Reading:
    """What to read from the next attention call.

    Attributes:
        signals: names as in `foveate.tokens.Signal`.
        queries: name -> ``(B, R)`` slots of the queries whose rows are wanted.
        valid: ``(B, Q)`` bool, queries that are not padding of ours, or None.
        queries_of: ``(B, S)`` queries of each of the samples that are packed into a row, or None: it is one.
        pattern: ``(B, 1, Q, K)`` bool, what each query sees, where the kernel is told in another way than by a mask; or None.
        parts: queries and keys of each image, where several that do not see each other share a single row.
        key_bias: ``(B, K)`` or packed ``(K,)`` added to the logits of each key, or None.
        drop_positions: hide ``position_ids`` from the kernel (gaps look like packed sequences to flash attention).
        attending: the rows that have queries among all rows of this attention, when some have none (they are parked, or
            skip it); or None.
        gradients: what is read carries gradients, where the model makes them.
        width: tokens per row that the layer brought; they are the last keys.
        take: what of those is still there, when a site before this one has reduced them: ``(B, P)`` slots, in a packed
            tower ``(rows,)``. None: all.
    """

    signals: frozenset[str] = frozenset()
    queries: dict[str, Tensor] = field(default_factory=dict)
    valid: Tensor | None = None
    queries_of: Tensor | None = None
    pattern: Tensor | None = None
    parts: tuple[tuple[int, int], ...] = ()
    key_bias: Tensor | None = None
    drop_positions: bool = False
    attending: Attending | Queries | None = None
    gradients: bool = False
    seen: Seen = field(default_factory=Seen)
    width: int = 0
    take: Tensor | None = None
    offset: int = 0  # keys already handled, when the kernel is called segment by segment

    @property
    def present(self) -> int:
        """Tokens per row of a padded batch that are still covered."""
        return self.width if self.take is None else self.take.shape[1]

    def narrow(self, take: Tensor) -> None:
        """Follow a reduction after the attention was read."""
        if self.take is None:
            self.take = take
        else:
            self.take = self.take.gather(1, take) if take.dim() == 2 else self.take[take]

    def take_flops(self) -> int:
        """What reading has cost since the last question."""
        flops, self.seen.flops = self.seen.flops, 0
        return flops


class Probe:
    """Stands between an attention module and its kernel; `reading` says, per thread, what is wanted now, if anything.

    ``exchange(query, key)`` gives the queries that the kernel gets in place of the layer's own, where layers lend them.
    """

    def __init__(
        self, reading: Callable[[], Reading | None], exchange: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        self.reading, self.exchange = reading, exchange

    def attend(
        self, kernel: Callable[..., Any], module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: Any
    ) -> Any:
        if self.exchange is not None:
            query = self.exchange(query, key)
        reading = self.reading()
        if reading is None:
            return kernel(module, query, key, value, mask, **kwargs)
        rows, place = query.shape[2], None
        if "flash" not in real_implementation(module.config):  # others are not told by lengths, whoever passes some
            kwargs = {name: value for name, value in kwargs.items() if not name.startswith("cu_seq_lens")}
        if reading.attending is not None:
            query, mask, place = reading.attending.narrow(query, mask, kwargs)
        if reading.drop_positions:
            kwargs["position_ids"] = None
        if reading.key_bias is not None:
            mask = _biased(mask, reading, key, query, real_implementation(module.config))
        if reading.signals & {"keys", "values"}:
            reading.seen.keys.append(key)
            reading.seen.values.append(value)
        whole = reading.pattern is not None
        for q, k, m in [(query, key, reading.pattern)] if whole else _segments(query, key, mask, kwargs):
            self._read(reading, module, q, k, m, kwargs)
        if reading.attending is None:
            return kernel(module, query, key, value, mask, **kwargs)
        if query.shape[2] == 0:  # every row of this segment is parked
            output, *rest = query.transpose(1, 2), None
        else:
            output, *rest = kernel(module, query, key, value, mask, **kwargs)
        return reading.attending.widen(output, place, rows), *rest

    @staticmethod
    def _read(reading: Reading, module: Any, query: Tensor, key: Tensor, mask: Any, kwargs: Any) -> None:
        how = Pattern.told(module, query, mask, kwargs)
        with torch.set_grad_enabled(reading.gradients and torch.is_grad_enabled()):
            for name, slots in reading.queries.items():
                rows = attention(query, key, mask, how, slots)
                rows = rows if name != "text_rows" else rows.mean(1, keepdim=True)
                reading.seen.rows.setdefault(name, []).append(rows)
                reading.seen.flops += 2 * query.shape[1] * slots.numel() * key.shape[2] * key.shape[3]
            if "received" in reading.signals:
                got = received(query, key, mask, how, reading.valid)
                if reading.parts and mask is not None:  # a key is seen by the queries of its own image only
                    queries, keys = (torch.tensor(each) for each in zip(*reading.parts))
                    share = query.shape[2] / queries.clamp(min=1).repeat_interleave(keys)
                    got = got * share.to(got.device, non_blocking=True)
                reading.seen.received.append(got)
                reading.seen.flops += 2 * query.shape[:3].numel() * key.shape[2] * key.shape[3]


def of_tokens(name: str, reading: Reading, layout: Rows, leading: int = 0, samples: int = 1) -> Tensor:
    """A signal of the visual tokens of ``layout``, from the attention that was read.

    Args:
        name: of the signal.
        reading: the attention of a padded batch.
        layout: the tokens present.
        leading: positions that the layout has lost at the front since (CLS).
        samples: packed into a row, each of which has rows of its own; see `foveate.tokens.Spans.sample`.

    Returns:
        ``(N, H, d)`` keys or values, ``(N,)`` attention received, ``(N, H)`` the last or the CLS row, ``(N, R)`` text rows.
    """
    seen, width = reading.seen, reading.width
    if name in ("keys", "values"):
        found = torch.cat(getattr(seen, name), dim=2)[:, :, -width:].transpose(1, 2)
    elif name == "received":
        found = torch.cat(seen.received, dim=1)[:, -width:]  # one call, or one part of a single row after another
    else:
        rows = torch.cat(seen.rows[name])[..., -width:]  # (B, H or 1, S * R, K)
        found = rows[:, 0].transpose(1, 2) if name == "text_rows" else rows.permute(0, 3, 2, 1).flatten(2)
    if reading.take is not None:
        found = take_rows(found, reading.take)
    picked = layout.rows(found[:, leading:].contiguous())
    if samples > 1:
        picked = _of_samples(name, picked, reading, layout.tokens, samples)
    return of_units(name, picked, layout.unit)


def _of_samples(name: str, picked: Tensor, reading: Reading, tokens: Tokens, samples: int) -> Tensor:
    """A signal of the visual tokens of rows that hold several ``samples``: of each token, what its own sample says."""
    segment = tokens.segment
    own = torch.tensor(tokens.spans.sample).to(segment.device, non_blocking=True)[segment]  # among those of all rows
    if name in ("last_row", "text_rows"):
        rows = picked.view(len(picked), samples, -1)
        return rows[torch.arange(len(rows), device=segment.device), own % samples]
    if name == "received" and reading.queries_of is not None:  # other samples' queries pay it none
        queries = reading.queries_of
        share = queries.sum(1).repeat_interleave(samples) / queries.flatten().clamp(min=1)
        return picked * share.to(picked)[own]
    return picked


def of_packed(name: str, reading: Reading, layout: Packed) -> Tensor:
    """A signal of the tokens of a packed tower: keys and values ``(N, H, unit * d)``, attention received ``(N,)``."""
    seen = reading.seen
    if name == "received":
        rows = torch.cat([part.flatten() for part in seen.received])
    else:
        rows = torch.cat([part[0].transpose(0, 1) for part in getattr(seen, name)])  # (rows, H, d)
    return of_units(name, rows if reading.take is None else rows[reading.take], layout.unit)


def of_units(name: str, rows: Tensor, unit: int) -> Tensor:
    """A signal of tokens of ``unit`` rows each, from that of their rows ``(N * unit, ...)``.

    Keys and values of a token are those of its rows side by side, ``(N, H, unit * d)``; attention is their mean.
    """
    if unit == 1:
        return rows
    parts = rows.view(-1, unit, *rows.shape[1:])
    if name in ("keys", "values"):
        return parts.transpose(1, 2).flatten(2)
    return parts.mean(1)


def _segments(query: Tensor, key: Tensor, mask: Any, kwargs: Any) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """One pair per attention segment: flash kernels take a packed tower in one call."""
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    if cu_seqlens is None:
        yield query, key, mask
        return
    lengths, key_lengths = (kwargs[name].diff().tolist() for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    for q, k in zip(query.split(lengths, dim=2), key.split(key_lengths, dim=2)):
        yield q, k, None


@dataclass(frozen=True)
class Pattern:
    """What attention does besides its mask.

    Attributes:
        scaling: of the logits.
        causal: query ``i`` of ``Q`` sees keys up to ``i + K - Q`` only (what a 4-D mask says itself).
        window: how many keys it sees then, or None: all.
        cap: logits are squeezed between this and its negative (soft capping), or None.
    """

    scaling: float
    causal: bool = False
    window: int | None = None
    cap: float | None = None

    @classmethod
    def told(cls, module: Any, query: Tensor, mask: Any, kwargs: Any) -> Pattern:
        """As the attention function is told."""
        scaling, cap = kwargs.get("scaling") or query.shape[-1] ** -0.5, kwargs.get("softcap")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            return cls(scaling, cap=cap)
        causal = kwargs.get("is_causal")  # the mask says nothing of the pattern, so it is the kernel's
        causal = getattr(module, "is_causal", True) if causal is None else causal
        return cls(scaling, bool(causal), kwargs.get("sliding_window"), cap)


def attention(query: Tensor, key: Tensor, mask: Any, how: Pattern, slots: Tensor) -> Tensor:
    """Attention of a few queries: ``softmax(q k^T * scaling + mask)``.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, G, K, d)``, ``H`` a multiple of ``G`` (grouped queries).
        mask: None, ``(B or 1, 1, Q, K)`` bool or additive, ``(B, K)`` keys present, or a flex ``BlockMask``.
        how: the rest of the pattern.
        slots: ``(B, R)`` queries; a negative one gives a row of zeros.

    Returns:
        ``(B, H, R, K)`` fp32.
    """
    batch, heads, n_queries, width = query.shape
    groups, n_keys = key.shape[1], key.shape[2]
    missing = (slots < 0).to(query.device)
    slots = slots.to(query.device).clamp(min=0)
    q = query.gather(2, slots[:, None, :, None].expand(batch, heads, -1, width))
    q = q.view(batch, groups, heads // groups * slots.shape[1], width)
    logits = (q @ key.transpose(2, 3)).float().view(batch, heads, slots.shape[1], n_keys) * how.scaling
    logits = logits if how.cap is None else (logits / how.cap).tanh() * how.cap
    if how.causal and (n_queries > 1 or how.window is not None):
        behind = (slots + (n_keys - n_queries))[..., None] - torch.arange(n_keys, device=query.device)
        seen = behind >= 0 if how.window is None else (behind >= 0) & (behind < how.window)
        logits = logits.masked_fill(~seen[:, None], -torch.inf)
    if mask is None:
        pass
    elif not isinstance(mask, Tensor):
        logits = logits.masked_fill(~rows_of(mask, slots), -torch.inf)
    elif mask.dim() == 2:
        logits = logits.masked_fill(~mask.bool()[:, None, None, -n_keys:], -torch.inf)
    else:
        rows = mask[..., :n_keys].expand(batch, -1, -1, -1)
        if rows.shape[2] > 1:
            rows = rows.gather(2, slots[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
        logits = logits.masked_fill(~rows, -torch.inf) if rows.dtype == torch.bool else logits + rows.float()
    # A query that sees nothing (padding of ours) pays no attention, rather than NaN, of which gradients would be NaN, too.
    blind = logits.isneginf().all(-1, keepdim=True)
    paid = logits.masked_fill(blind, 0.0).softmax(-1).nan_to_num()
    return paid.masked_fill(blind | missing[:, None, :, None], 0.0)


def received(query: Tensor, key: Tensor, mask: Any, how: Pattern, valid: Tensor | None) -> Tensor:
    """Mean over heads and (valid) queries of the attention that each key receives: ``(B, K)`` fp32."""
    batch, _, n_queries, _ = query.shape
    total = torch.zeros(batch, key.shape[2], device=query.device)
    weight = torch.ones(batch, n_queries, device=query.device) if valid is None else valid.float()
    for start in range(0, n_queries, _CHUNK):
        slots = torch.arange(start, min(start + _CHUNK, n_queries), device=query.device).expand(batch, -1)
        rows = attention(query, key, mask, how, slots).mean(1)  # (B, R, K)
        total += (rows * weight[:, start : start + _CHUNK, None]).sum(1)
    return total / weight.sum(1, keepdim=True).clamp(min=1)


def _biased(mask: Any, reading: Reading, key: Tensor, query: Tensor, implementation: str) -> Tensor:
    """The mask with a bias per key (log sizes of merged tokens)."""
    bias = reading.key_bias
    assert bias is not None
    if "flash" in implementation or not (mask is None or isinstance(mask, Tensor)):
        raise UnsupportedModelError(
            "attention in proportion to the sizes of merged tokens adds to logits, which "
            f"{implementation} cannot do here: use sdpa or eager attention in the vision tower"
        )
    bias = bias[None] if bias.dim() == 1 else bias
    if bias.shape[1] > key.shape[2]:
        bias = bias[:, reading.offset : reading.offset + key.shape[2]]
        reading.offset += key.shape[2]
    bias = bias[:, None, None, :].to(query.dtype)
    if mask is None:
        return bias.expand(-1, 1, query.shape[2], -1)
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, -math.inf)
    return mask + bias


def _entry(base: str) -> Callable[..., Any]:
    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        config, probe = module.config._foveate
        if base == "eager":  # not in the registry: every modelling file has its own
            kernel = sys.modules[type(module).__module__].eager_attention_forward
        else:
            kernel = ALL_ATTENTION_FUNCTIONS[base]
        if "flash" in base:
            module = _ModuleView(module, config)
        return probe.attend(kernel, module, query, key, value, attention_mask, kwargs)

    return attend


def watch(module: nn.Module, probe: Probe) -> Callable[[], None]:
    """Put ``probe`` between an attention module and its kernel; call the result to take it away again."""
    config: Any = module.config
    for base in ("eager", *ALL_ATTENTION_FUNCTIONS.keys()):  # the user may switch implementations later
        if not base.startswith(PREFIX) and PREFIX + base not in ALL_ATTENTION_FUNCTIONS:
            AttentionInterface.register(PREFIX + base, _entry(base))
    module.config = ConfigView(config, probe)  # type: ignore[assignment]

    def undo() -> None:
        module.config = config

    return undo
