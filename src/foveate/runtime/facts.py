"""What a family says of its models, compared with the model and with the shapes that pass by.

A wrong fact must not end as somebody else's IndexError, or worse, as tokens of the wrong place. Nothing is run for that: a
model may be too large for another call than its user's, and inputs cannot be made up for a tower that is not known yet. Names
are looked up when a method is put on a model; the rest is compared where hooks are anyway, with what stock code hands over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from foveate.errors import UnsupportedModelError
from foveate.models.family import Decoder, Family, Tower
from foveate.runtime.context import Context, TowerPass
from foveate.runtime.images import strays_of, units


class Facts:
    """The facts of one family, and how a wrong one is reported."""

    def __init__(self, family: Family) -> None:
        self.family = family

    def wrong(self, fact: str, but: str) -> UnsupportedModelError:
        """Return the error for a fact of the family that this model contradicts."""
        return UnsupportedModelError(
            f"the family {self.family.name!r} says {fact}, but {but}: mend the family, or the model"
        )

    def check_names(self, base: nn.Module, config: Any) -> None:
        """Every module and function that the family names is there."""
        tower, decoder = self.family.tower, self.family.decoder
        self._check_tower(base, getattr(config, "vision_config", None))
        for owner, field, path, root in _paths(tower, decoder, base):
            if _missing(root, path):
                raise self.wrong(f"{owner}.{field}={path!r}", f"{type(root).__name__} has no such module")
        names = [name for name in tower.arrangements if not hasattr(base, name)]
        if tower.arrangements and len(names) == len(tower.arrangements):
            raise self.wrong(f"Tower.arrangements={names}", f"{type(base).__name__} has none of these functions")
        if tower.layout != "packed" and tower.unit(config) > 1 and not tower.joins:
            raise self.wrong(
                f"Tower.joins='' of a {tower.layout} tower",
                f"a unit is {tower.unit(config)} patches (Tower.unit), which stock code has to put together somewhere",
            )
        blocks = tower.blocks_of(base.get_submodule(tower.module))
        last = tower.last_block(config)
        if not tower.unseen and not 0 <= last < len(blocks):
            raise self.wrong(f"that Tower.last_block is {last}", f"the tower has {len(blocks)} blocks")

    def _check_tower(self, base: nn.Module, vision: Any) -> None:
        """The vision tower is of the type that the config says."""
        said = getattr(vision, "model_type", "")
        if not said or self.family.tower.unseen or _missing(base, self.family.tower.module):
            return
        built = getattr(getattr(base.get_submodule(self.family.tower.module), "config", None), "model_type", said)
        if built != said:
            raise UnsupportedModelError(
                f"the config of this {self.family.model_type!r} says that its vision tower is a {said!r}, and the tower of the "
                f"model is a {built!r}: mend vision_config, or load the model with the tower that it was made for"
            )

    def check_part(self, layer: nn.Module, part: str) -> None:
        """Return what the family names in a part of a decoder layer is there. (Asked of layers that have a site there only.)"""
        decoder = self.family.decoder
        names = {"ffn": ("ffn",), "attention": ("attention", "query", "attention_end", "attention_norm")}[part]
        for field in names:
            inside = layer.get_submodule(decoder.attention) if field in ("query", "attention_end") else layer
            path = getattr(decoder, field)
            if not path:
                raise UnsupportedModelError(
                    f"layers of {self.family.name!r} have no norm before their attention: all tokens go through that, or none "
                    "does; act before whole layers, or on their FFNs"
                )
            if _missing(inside, path):
                raise self.wrong(f"Decoder.{field}={path!r}", f"{type(inside).__name__} has no such module")

    def check_features(self, output: Any) -> None:
        """The output module gives one tensor of features, or the whole of a list of them."""
        if not isinstance(output, Tensor):
            raise self.wrong(
                f"that Tower.output={self.family.tower.output!r} makes features", f"it gives a {type(output).__name__}"
            )

    def check_count(self, rows: int, promised: int) -> None:
        """There are as many features as the grid has units."""
        if rows != promised:
            raise self.wrong(
                f"that Tower.output={self.family.tower.output!r} makes {promised} features (Tower.grid, and Tower.kept_rows)",
                f"it makes {rows}",
            )

    def check_axis(self, name: str, value: Any, axis: int | str, lengths: tuple[int | None, ...]) -> None:
        """An argument of a decoder layer has its tokens where the family says."""
        for item in value if isinstance(value, tuple) else (value,):
            at = 1 if axis == "own" else int(axis)
            if not -item.dim() <= at < item.dim() or item.shape[at] not in lengths:
                raise self.wrong(
                    f"Decoder.layer_args[{name!r}]={axis!r}",
                    f"{name} is {tuple(item.shape)} and the prompt has {lengths[0]} tokens",
                )


class TowerFacts(Facts):
    """Those of a tower, compared along a call of it."""

    def __init__(self, family: Family, unit: int) -> None:
        super().__init__(family)
        self.unit = unit
        self._known = False  # a call has shown which block features are made of
        self._mine = threading.local()  # one row of what each block puts out, of the call in this thread

    def at_block(self, call: TowerPass, i: int, hidden: Tensor) -> None:
        """Rows that stock code hands to block ``i``, which are what the one before puts out."""
        spec = self.family.tower
        if i == 0:
            self._mine.rows = {}
        if i == 0 and call.layout is None:
            if hidden.dim() != (2 if spec.layout == "packed" else 3):
                raise self.wrong(f"Tower.layout={spec.layout!r}", f"block 0 is given rows {tuple(hidden.shape)}")
            now, images = call.now, sum(t for t, _, _ in call.now.grid)
            rows = units(now.grid) * self.unit + sum(strays_of(now.grid, now.sides, self.unit)) + images * spec.leading
            rows = rows if now.padded is None else images * now.padded
            if hidden.shape[:-1].numel() != rows:
                raise self.wrong(
                    f"that this call of the tower has {rows} rows (by Tower.grid, Tower.unit and Tower.leading)",
                    f"block 0 is given {hidden.shape[:-1].numel()}",
                )
        self._note(i - 1, hidden)

    def after_blocks(self, context: Context, n: int, module: nn.Module, args: Any, output: Any) -> None:
        """A hook of the last of ``n`` blocks."""
        if context.tower is not None:
            self._note(n - 1, output[0] if isinstance(output, tuple) else output)

    def _note(self, block: int, hidden: Tensor) -> None:
        """One row of what a block puts out, its first patch."""
        first = self.family.tower.leading
        if block >= 0 and not self._known:  # cloned: a view would keep all rows of every block
            self._mine.rows[block] = (hidden[:1] if hidden.dim() == 2 else hidden[0, first : first + 1]).clone()

    def at_output(self, call: TowerPass, args: Any, last: int, pools: bool) -> None:
        """Rows that the module which makes features is given; ``pools``: stock code has pooled them."""
        spec = self.family.tower
        name, x, layout = (*spec.neck, spec.output)[0], args[0] if args else None, call.layout
        if not isinstance(x, Tensor) or x.dim() not in (2, 3):
            what = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise self.wrong(
                f"that rows of tokens reach {name!r} (the first of Tower.neck and Tower.output)",
                f"it is given {what}, and not (images, tokens, channels) or (tokens, channels) by position",
            )
        rows, promised = x.shape[:-1].numel(), set[int]()
        if spec.joins == "before":
            promised = {units((call.now if spec.pooler else call.full).grid)}
        elif layout is not None and not spec.joins and not pools:
            promised = {layout.n_rows, layout.n_rows - x.shape[0] * spec.leading}
        if promised and rows not in promised:
            raise self.wrong(
                f"Tower.joins={spec.joins!r}, by which {max(promised)} rows reach {name!r}",
                f"it is given {rows}, so Tower.joins, Tower.last_block or Tower.neck is another",
            )
        if not self._known:
            self._known = self._check_last_block(x, self._mine.rows, last)
            self._mine.rows = {}

    def _check_last_block(self, x: Tensor, rows_of: Mapping[int, Tensor], last: int) -> bool:
        """Features are made of what block ``last`` puts out, as far as one row of each block (its first patch) tells.

        Returns:
            Whether this call tells: one whose tower overflows does not.
        """
        if x.numel() == 0 or any(bool(row.isnan().any()) for row in rows_of.values()):
            return False
        if bool(x.isnan().all()):  # as `without_rows` leaves it
            raise self.wrong(
                f"that features are made of what block {last} puts out (Tower.last_block; the last one, after the last norm)",
                "they are made of other hidden states",
            )
        first = x.flatten(0, -2)[[0, min(self.family.tower.leading, x.shape[-2] - 1)]]
        first = first[first.any(-1)]  # zeros stand for nothing
        same = [block for block, row in rows_of.items() if row.shape[-1] == first.shape[-1] and _has(first, row)]
        if same and last not in same:
            raise self.wrong(f"that Tower.last_block is {last}", f"features are made of what block {same[-1]} puts out")
        return True


def _has(rows: Tensor, row: Tensor) -> bool:
    return bool((rows == row.to(rows)).all(-1).any())


def _missing(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return True
    return False


def _paths(tower: Tower, decoder: Decoder, base: nn.Module) -> Iterator[tuple[str, str, str, nn.Module]]:
    """``(Tower or Decoder, field, path, module that it is under)``, the outer ones first."""
    yield "Tower", "module", tower.module, base
    vision = base.get_submodule(tower.module)
    yield "Tower", "blocks", tower.blocks, vision
    yield "Tower", "output", tower.output, base
    yield from (("Tower", "neck", path, base) for path in tower.neck)
    yield from (("Tower", "tail", path, base) for path in tower.tail)
    yield "Tower", "taps", tower.taps, base
    yield "Tower", "pooler", tower.pooler, vision
    if tower.merger is not None:
        yield "Tower", "merger", tower.merger.module, vision
    for block in tower.blocks_of(vision)[:1]:
        for field in ("attention", "mid_norm", "ffn_end", "attention_norm"):
            yield "Tower", field, getattr(tower, field), block
        for field in ("query", "attention_end"):
            yield "Tower", field, getattr(tower, field), block.get_submodule(tower.attention)
    yield "Decoder", "module", decoder.module, base
    language = base.get_submodule(decoder.module)
    for field in ("layers", "norm", "rotary"):
        yield "Decoder", field, getattr(decoder, field), language
    for layer in language.get_submodule(decoder.layers).children():
        if not decoder.recurrent or _missing(layer, decoder.recurrent):
            yield "Decoder", "attention", decoder.attention, layer
