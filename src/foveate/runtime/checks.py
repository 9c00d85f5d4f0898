"""The answers of methods are checked before anything is built on them.

Shapes are checked at every call. Order, range and spans are values, which wait for the device: those of `watched` calls only.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from foveate.answers import Append, Channels, Remember, Sight
from foveate.errors import ConfigError, InputError
from foveate.method import Method, Site
from foveate.tokens import Reduction, Tokens


def watched(method: Method, tokens: Tokens, first: bool) -> bool:
    """Tell whether values are looked at: of methods that the library does not test itself, at their first call, or wherever
    nobody waits for it."""
    is_ours = type(method).__module__.startswith("foveate.")
    return not is_ours and (first or tokens.index.device.type == "cpu")


def check_shapes(method: Method, site: Site, tokens: Tokens, answer: object) -> Reduction:
    """Return the reduction that a method answered; raise `ConfigError` unless its parts are of the right type and size."""
    said = f"{type(method).__name__}.reduce at {site}"
    if not isinstance(answer, Reduction):
        raise ConfigError(f"{said} returned {type(answer).__name__}, expected a Reduction")
    keep, counts, resizes = answer.keep, answer.counts, site.at == "pixels"
    if not isinstance(keep, Tensor) or keep.dtype != torch.long or keep.dim() != 1:
        raise ConfigError(f"{said}: keep is {_describe(keep)}, expected int64 indices (K,) of the {len(tokens)} tokens")
    if keep.device != tokens.index.device:
        raise ConfigError(f"{said}: keep is on {keep.device}, expected it on {tokens.index.device}, as the tokens are")
    if not isinstance(counts, tuple) or any(type(count) is not int for count in counts):
        raise ConfigError(f"{said}: counts={counts!r}, expected a tuple with a whole number for every span")
    if len(counts) != len(tokens.counts) or sum(counts) != len(keep):
        raise ConfigError(
            f"{said}: counts {counts} for {len(tokens.counts)} spans do not match the {tuple(keep.shape)} indices of keep"
        )
    if any(after < 0 or (after > before and not resizes) for before, after in zip(tokens.counts, counts)):
        raise ConfigError(f"{said}: counts {counts}, expected 0 to {tokens.counts}, what each span has")
    _check_grid(said, resizes, tokens, answer)
    _check_values(said, tokens, answer)
    if answer.groups is not None and not callable(answer.groups):
        raise ConfigError(f"{said}: groups is {_describe(answer.groups)}, expected a function that gives (N,) indices")
    merges = answer.hidden is not None and len(keep) < len(tokens)
    if method.positions == "virtual" and merges and answer.groups is None and site.action == "reduce":
        raise ConfigError(f'{said} merges tokens, and positions="virtual" needs to know whom: say it in groups')
    if answer.bias is not None and (site.at not in ("lm_entry", "decoder") or site.action != "reduce"):
        raise ConfigError(
            f"{said} says a bias, which is for keys of the language model: say it where tokens are reduced there"
        )
    changed = [name for name in ("hidden", "sizes", "coords", "groups") if getattr(answer, name) is not None]
    if site.action == "skip" and changed:
        raise ConfigError(f"{said} says new {', '.join(changed)}, and a token that skips a part stays: leave that out")
    return answer


def check_channels(method: Method, site: Site, tokens: Tokens, answer: object, channels: int, look: bool) -> Channels:
    """Return the channels that a method answered; raise `ConfigError` unless they are some of all ``channels``, each once.

    Args:
        look: whether values are looked at, too.
    """
    said = f"{type(method).__name__}.answer at {site}"
    if not isinstance(answer, Channels):
        raise ConfigError(f"{said} returned {type(answer).__name__}, expected Channels")
    index, of, spans = answer.index, answer.of, len(tokens.counts)
    if not isinstance(index, Tensor) or index.dtype != torch.long or index.dim() != (1 if of is None else 2):
        shape = "(K,)" if of is None else "(G, K)"
        raise ConfigError(f"{said}: index is {_describe(index)}, expected int64 {shape} of the {channels} channels")
    if index.device != tokens.index.device:
        raise ConfigError(
            f"{said}: index is on {index.device}, expected it on {tokens.index.device}, as the tokens are"
        )
    if not 0 < index.shape[-1] <= channels:
        raise ConfigError(f"{said}: index has {index.shape[-1]} channels, expected 1 to {channels}")
    if of is not None and (
        not isinstance(of, tuple) or len(of) != spans or not all(type(g) is int and 0 <= g < len(index) for g in of)
    ):
        raise ConfigError(
            f"{said}: of={of!r}, expected for each of the {spans} spans a row of index, 0 to {len(index) - 1}"
        )
    if look and index.numel():
        rows = index.view(-1, index.shape[-1])
        if not bool((rows.diff() > 0).all()) or int(rows.min()) < 0 or int(rows.max()) >= channels:
            raise ConfigError(
                f"{said}: index is not ascending from 0 to {channels - 1} at most, each channel once: sort it"
            )
    return answer


def _check_grid(said: str, resizes: bool, tokens: Tokens, answer: Reduction) -> None:
    """Raise `ConfigError` unless the new grids of resized images fit their tokens."""
    if not resizes:
        if answer.shape is not None:
            raise ConfigError(f"{said} says a new shape, and images get one at a pixels site only: leave it out")
        return
    shape, clips = answer.shape, tokens.spans.clip
    if not isinstance(shape, tuple) or len(shape) != len(clips) or tuple(h * w for h, w in shape) != answer.counts:
        raise ConfigError(
            f"{said}: shape={shape!r}, expected a (height, width) for every span, of as many tokens as counts says, "
            f"{answer.counts}"
        )
    if len(set(zip(clips, shape))) > len(set(clips)):
        raise ConfigError(f"{said}: shape={shape!r}, expected the frames of a video to have one size")


def _check_values(said: str, tokens: Tokens, answer: Reduction) -> None:
    """Raise `ConfigError` unless new values of the survivors have the right type and size."""
    n, width = len(answer.keep), tokens.hidden.shape[1:]
    if answer.hidden is not None and not width:
        raise ConfigError(f"{said} returned new hidden states, and tokens have none here: leave them out")
    expected = {"hidden": (n, *width), "sizes": (n,), "coords": (n, 3), "bias": (n,)}
    for name, shape in expected.items():
        value = getattr(answer, name)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
            raise ConfigError(
                f"{said}: {name} is {_describe(value)}, expected floats {shape}, one row for each survivor"
            )
        if value.device != answer.keep.device:
            raise ConfigError(f"{said}: {name} is on {value.device}, expected it on {answer.keep.device}")


def check_members(method: Method, site: Site, tokens: Tokens, answer: Reduction) -> None:
    """Raise `ConfigError` unless ``keep`` are ascending indices, as many of each span as ``counts`` says, and each token of
    ``groups`` is in a survivor. (The cells of a new grid may show a token twice, in the order of that grid.)"""
    said, keep = f"{type(method).__name__}.reduce at {site}", answer.keep.cpu()
    n, k = len(tokens), len(keep)
    outside = keep[(keep < 0) | (keep >= n)].tolist()
    if outside:
        raise ConfigError(f"{said}: keep has {_few(outside)}, expected indices from 0 to {n - 1}")
    falls = (keep.diff() <= 0).nonzero().flatten().tolist()
    if falls and site.at != "pixels":
        i = falls[0]
        raise ConfigError(
            f"{said}: keep goes from {int(keep[i])} to {int(keep[i + 1])}, expected each token once, ascending: sort it"
        )
    counts = torch.bincount(tokens.segment.cpu()[keep], minlength=len(tokens.counts)).tolist()
    if tuple(counts) != answer.counts:
        raise ConfigError(f"{said}: counts {answer.counts}, but keep has {tuple(counts)} tokens of the spans")
    if answer.groups is not None:
        group = answer.groups()
        if not isinstance(group, Tensor) or group.shape != (n,) or group.dtype != torch.long:
            raise ConfigError(
                f"{said}: groups gives {_describe(group)}, expected int64 ({n},), the survivor of each token"
            )
        outside = group[(group < 0) | (group > k)].tolist()
        if outside:
            raise ConfigError(f"{said}: groups has {_few(outside)}, expected 0 to {k - 1}, or {k} for a token in none")
        _check_clips(said, tokens, keep, group.cpu())


def _check_clips(said: str, tokens: Tokens, keep: Tensor, group: Tensor) -> None:
    """Raise `ConfigError` where a token joins one of another image or video."""
    number = {span: clip for clip, spans in enumerate(tokens.spans.clips) for span in spans}
    clip = torch.tensor([number[span] for span in range(len(tokens.counts))])[tokens.segment.cpu()]
    joined = group < len(keep)
    astray = joined.nonzero().flatten()[clip[joined] != clip[keep[group[joined]]]].tolist()
    if astray:
        raise ConfigError(
            f"{said}: token {astray[0]} joins token {int(keep[group[astray[0]]])}, which is of another image: what comes out "
            "for one would depend on the other; merge inside an image, or a video"
        )


def check_sight(method: Method, site: Site, tokens: Tokens, answer: object, look: bool) -> Sight:
    """Return the sight that a method answered; raise `ConfigError` unless it has a group for every token."""
    said = f"{type(method).__name__}.answer at {site}"
    if not isinstance(answer, Sight):
        raise ConfigError(f"{said} returned {type(answer).__name__}, expected a Sight")
    group, sees, n = answer.group, answer.sees, len(tokens)
    if not isinstance(group, Tensor) or group.shape != (n,) or group.dtype != torch.long:
        raise ConfigError(f"{said}: group is {_describe(group)}, expected int64 ({n},), the group of each token")
    if group.device != tokens.index.device:
        raise ConfigError(
            f"{said}: group is on {group.device}, expected it on {tokens.index.device}, as the tokens are"
        )
    square = isinstance(sees, Tensor) and sees.dim() == 2 and sees.shape[0] == sees.shape[1] > 0
    if not square or sees.dtype != torch.bool:
        raise ConfigError(
            f"{said}: sees is {_describe(sees)}, expected bool (G + 1, G + 1), a row and a column for each of the G groups, "
            "and the last ones for the text"
        )
    if not bool(sees[-1, -1]):
        raise ConfigError(
            f"{said}: sees says that text does not see text, and only visual tokens can be hidden from it"
        )
    window = answer.window
    if window is not None and (type(window) is not int or window < 0):
        raise ConfigError(f"{said}: window={window!r}, expected None or a whole number of places, 0 or more")
    if site.at == "tower" and (window is not None or answer.apart):
        raise ConfigError(
            f"{said} says a window, or apart=True, which are for the language model: leave them out in the vision tower, where "
            "images are apart from each other anyway"
        )
    outside = group[(group < 0) | (group >= len(sees) - 1)].tolist() if look else []
    if outside:
        raise ConfigError(
            f"{said}: group has {_few(outside)}, expected 0 to {len(sees) - 2}, as sees is {tuple(sees.shape)} with the text's"
        )
    return answer


def check_pools(method: Method, site: Site, tokens: Tokens) -> None:
    """Raise `InputError` where tokens of several spans are ranked together, or compared, and not all of them may be here."""
    if tokens.seen and (method.scope == "sample" or method.pooled):  # (known only where a prompt comes in chunks)
        raise InputError(
            f"{method.name()} at {site} ranks all images of a prompt, or all frames of a video, at once, and this prompt comes "
            "in chunks: use prefill_chunk_size=None"
        )
    if not (tokens.seen and method.temporal):
        return
    for clip in tokens.spans.clips:
        here, whole = sum(tokens.counts[span] for span in clip), tokens.total[clip[0]] if tokens.total else 0
        if len(clip) > 1 and here and here != whole:
            raise InputError(
                f"{method.name()} at {site} compares the frames of a video, and this prompt brings one in several chunks: "
                "use prefill_chunk_size=None"
            )


def check_append(method: Method, site: Site, tokens: Tokens, answer: object) -> Append:
    """The tokens that a method appends; raise `ConfigError` unless they have the width of others and a count for each span."""
    said = f"{type(method).__name__}.answer at {site}"
    if not isinstance(answer, Append):
        raise ConfigError(f"{said} returned {type(answer).__name__}, expected an Append")
    _check_rows(said, "hidden", answer.hidden, answer.counts, tokens, tokens.hidden.shape[1])
    coords, expected = answer.coords, (*answer.hidden.shape[:-1], 2)
    if coords is not None and site.at != "tower":
        raise ConfigError(f"{said} says coords, which are for the tower: here positions are what Method.positions says")
    if coords is not None and not (isinstance(coords, Tensor) and coords.shape == expected):
        raise ConfigError(
            f"{said}: coords is {_describe(coords)}, expected floats {expected}, y and x of each new token"
        )
    for name, each in (("score", answer.score), ("bias", answer.bias)):
        if each is not None and (site.at == "tower" or answer.counts is None):
            raise ConfigError(
                f"{said} says a {name}, which is for new tokens with counts, and at the entry: leave it out"
            )
        if each is not None and not (isinstance(each, Tensor) and each.shape == answer.hidden.shape[:1]):
            raise ConfigError(f"{said}: {name} is {_describe(each)}, expected floats ({len(answer.hidden)},)")
    return answer


def check_remember(method: Method, site: Site, tokens: Tokens, answer: object) -> Remember:
    """Return the rows that a method remembers; raise `ConfigError` unless it says how many rows are kept of each span."""
    asked = "remember" if type(method).answer is Method.answer else "answer"
    said = f"{type(method).__name__}.{asked} at {site}"
    if not isinstance(answer, Remember):
        raise ConfigError(f"{said} returned {type(answer).__name__}, expected a Remember")
    _check_rows(said, "rows", answer.rows, answer.counts, tokens, None)
    return answer


def check_injected(method: Method, site: Site, x: Tensor, added: object) -> Tensor:
    """Return the rows that a method injects; raise `ConfigError` unless there is a row for every row of ``x (M, C)``."""
    said = f"{type(method).__name__}.inject at {site}"
    if not isinstance(added, Tensor) or added.shape != x.shape or not added.is_floating_point():
        raise ConfigError(
            f"{said} returned {_describe(added)}, expected floats {tuple(x.shape)}: what is added to each row of x"
        )
    if added.device != x.device:
        raise ConfigError(f"{said} returned a tensor on {added.device}, expected it on {x.device}, as x is")
    return added


def _check_rows(said: str, name: str, x: object, counts: object, tokens: Tokens, width: int | None) -> None:
    """Rows ``x`` for each span of ``tokens``, of a ``width`` (None: any): ``(S, V, width)``, or ``(M, width)`` with counts."""
    spans, wide = len(tokens.counts), "any width" if width is None else str(width)
    if counts is not None and (not isinstance(counts, tuple) or any(type(n) is not int or n < 0 for n in counts)):
        raise ConfigError(f"{said}: counts={counts!r}, expected a tuple with a whole number for every span, 0 or more")
    if counts is not None and len(counts) != spans:
        raise ConfigError(f"{said}: counts {counts}, expected one for each of the {spans} spans")
    shape = f"({spans}, any number, {wide})" if counts is None else f"({sum(counts)}, {wide}), as many as counts says"
    dims, n = (3, spans) if counts is None else (2, sum(counts))
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != dims or len(x) != n:
        raise ConfigError(f"{said}: {name} is {_describe(x)}, expected floats {shape}")
    if width is not None and x.shape[-1] != width:
        raise ConfigError(f"{said}: {name} is {_describe(x)}, expected floats {shape}")
    if x.device != tokens.index.device:
        raise ConfigError(f"{said}: {name} is on {x.device}, expected it on {tokens.index.device}, as the tokens are")


def flops_of(method: Method, tokens: Tokens, site: Site) -> int:
    """Return what a method says that its work costs, a whole number; nothing where it is not asked (`Method.answer`)."""
    if site.keep == 0 and site.action == "reduce":
        return 0
    return _whole_number(f"{type(method).__name__}.flops at {site}", method.flops(tokens, site))


def flops_of_injecting(method: Method, x: Tensor, memory: Tensor, site: Site) -> int:
    """Return what a method says that `Method.inject` costs."""
    said = f"{type(method).__name__}.inject_flops at {site}"
    return _whole_number(said, method.inject_flops(x, memory, site))


def _whole_number(said: str, flops: Any) -> int:
    try:
        return operator.index(flops)
    except TypeError:
        raise ConfigError(f"{said} returned {_describe(flops)}, expected a whole number") from None


def check_restored(method: Method, site: Site, restored: object, parked: Tensor) -> None:
    """Raise `ConfigError` unless ``restored`` has a row for every token that ``parked`` has."""
    if not isinstance(restored, Tensor) or restored.shape != parked.shape or not restored.is_floating_point():
        raise ConfigError(
            f"{type(method).__name__}.restore at {site} returned {_describe(restored)}, expected floats "
            f"{tuple(parked.shape)}: one row for every token that was there when they were parked"
        )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{value!r}" if isinstance(value, (int, float, str)) else type(value).__name__


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:3])) + (" ..." if len(numbers) > 3 else "")
