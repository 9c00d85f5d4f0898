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
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from foveate.errors import UnsupportedModelError
from foveate.runtime.signals.pattern import Pattern
from foveate.runtime.signals.reading import Reading

PREFIX = "foveate|"


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
    """Return the attention implementation behind a config or a view of it."""
    if isinstance(config, ConfigView):
        config = config._foveate[0]
    return str(config._attn_implementation or "eager")


def is_flash(attention: Any) -> bool:
    """Tell whether the kernel of an attention module is one of flash attention."""
    return "flash" in real_implementation(attention.config)


class StoppedError(Exception):
    """Raised in place of a kernel whose output nobody needs: its queries and keys have been read."""


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
        reading = self.reading()
        if self.exchange is not None and not (reading is not None and reading.ahead):
            query = self.exchange(query, key)
        if reading is None:
            return kernel(module, query, key, value, mask, **kwargs)
        rows, place = query.shape[2], None
        if "flash" not in real_implementation(module.config):  # others are not told by lengths, whoever passes some
            kwargs = {name: value for name, value in kwargs.items() if not name.startswith("cu_seq_lens")}
        if reading.attending is not None:
            query, mask, place = reading.attending.narrow(query, mask, kwargs)
        if reading.drop_positions:
            kwargs["position_ids"] = None
        if reading.key_bias is not None or reading.sight is not None:
            mask = _told(mask, reading, key, query, real_implementation(module.config))
        if reading.before is not None:
            key = torch.cat([reading.before.to(key), key], dim=2)
        own = [x[:, :, :0] if reading.stands else x for x in (query, key, value)]
        reading.note(*own)
        whole = reading.pattern is not None or reading.stands
        pairs: Iterable[tuple[Tensor, Tensor, Any]] = (
            [(own[0], own[1], reading.pattern)] if whole else _segments(query, key, mask, kwargs)
        )
        for q, k, m in pairs:
            reading.read(q, k, m, Pattern.told(module, q, m, kwargs))
        if reading.ahead:
            raise StoppedError
        if reading.attending is None:
            return kernel(module, query, key, value, mask, **kwargs)
        if query.shape[2] == 0:  # every row of this segment is parked
            output, *rest = query.transpose(1, 2), None
        else:
            output, *rest = kernel(module, query, key, value, mask, **kwargs)
        return reading.attending.widen(output, place, rows), *rest


def _segments(query: Tensor, key: Tensor, mask: Any, kwargs: Any) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """One pair per attention segment: flash kernels take a packed tower in one call."""
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    if cu_seqlens is None:
        yield query, key, mask
        return
    lengths, key_lengths = (kwargs[name].diff().tolist() for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    for q, k in zip(query.split(lengths, dim=2), key.split(key_lengths, dim=2)):
        yield q, k, None


def _told(mask: Any, reading: Reading, key: Tensor, query: Tensor, implementation: str) -> Tensor:
    """Return the mask with a bias per key (log sizes of merged tokens), without pairs of rows that do not see each other."""
    bias, sight = reading.key_bias, reading.sight
    if "flash" in implementation or not (mask is None or isinstance(mask, Tensor)):
        kernel = "flash attention" if "flash" in implementation else implementation
        raise UnsupportedModelError(
            "attention in proportion to the sizes of merged tokens adds to logits, which "
            f"{implementation} cannot do here: use sdpa or eager attention in the vision tower"
            if sight is None
            else f"{kernel} takes no mask of pairs of tokens, which a method asks for that says who may see whom: use sdpa or "
            "eager attention in the vision tower"
        )
    here = reading.next_part(key.shape[2])
    if sight is not None:
        mask = _sighted(mask, sight[0][..., here], sight[1], query.dtype)
    return mask if bias is None else _biased(mask, bias[..., here], query)


def _sighted(mask: Tensor | None, group: Tensor, sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask without pairs of rows that do not see each other, by the group of each."""
    group = group[None] if group.dim() == 1 else group
    known = torch.where(group < 0, len(sees) - 1, group)
    seen = sees[known[:, :, None], known[:, None, :]] | torch.eye(known.shape[1], dtype=torch.bool, device=group.device)
    if mask is None:
        mask = torch.zeros((), dtype=dtype, device=group.device)
    return (
        mask & seen[:, None] if mask.dtype == torch.bool else mask.masked_fill(~seen[:, None], torch.finfo(dtype).min)
    )


def _biased(mask: Tensor | None, bias: Tensor, query: Tensor) -> Tensor:
    bias = (bias[None] if bias.dim() == 1 else bias)[:, None, None, :].to(query.dtype)
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
