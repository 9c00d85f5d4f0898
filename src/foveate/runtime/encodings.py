"""Features of images on their way from the vision tower to a prompt, and those that a caller has kept.

While the model encodes images for a prompt of its own (`forward` or `generate` with pixels), features go to the prompt at full
length, marked where tokens have left (`foveate.runtime.marks`). A caller who asks for features (`get_image_features`) gets
those that are left, all finite, and may bring them back later, in any order, as ``mm_encoder_outputs`` or inside
``inputs_embeds``: they are recognised (`foveate.runtime.memory`), and their geometry comes with them.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foveate.errors import InputError, UnsupportedModelError
from foveate.models.family import Family, Grid
from foveate.ops.segments import offsets
from foveate.runtime.arrange import Order
from foveate.runtime.context import Context, Record
from foveate.runtime.features import pooled_of, with_pooled
from foveate.runtime.hooks import Hooks
from foveate.runtime.marks import holes, mark
from foveate.runtime.memory import Encoding, Known, Remembered, encodings_of, frames_of, record_of
from foveate.runtime.pieces import (
    completed,
    images_in,
    in_form_of,
    left_in,
    pieces_of,
    starts_of,
    with_deepstack,
    with_newlines,
    without_holes,
)
from foveate.runtime.prompt import Prompt
from foveate.runtime.state import Begun
from foveate.tokens import Tokens

_FUNCTIONS = {"get_image_features": "pixel_values", "get_video_features": "pixel_values_videos"}
KINDS = {"pixel_values": "image", "pixel_values_videos": "video"}  # as stock code calls them
_GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
_TYPES = {"pixel_values": 1, "pixel_values_videos": 2}  # of tokens, in ``mm_token_type_ids``


class Form(NamedTuple):
    """How stock code has features.

    Attributes:
        width: features of each image, where all are in one tensor with an axis of images; None: they are not.
        rows: all are in one tensor without it.
        layers: how many tensors there are that layers of the language model add.
        apart: whether an image has those in a tensor of its own.
    """

    width: int | None = None
    rows: bool = False
    layers: int = 0
    apart: bool = False

    @classmethod
    def of(cls, features: Any, layers: Sequence[Any]) -> Form:
        """Describe what a function returns."""
        one = isinstance(features, Tensor)
        apart = any(not isinstance(layer, Tensor) for layer in layers)
        return cls(features.shape[1] if one and features.dim() == 3 else None, one, len(layers), apart)


class Encodings:
    """Hooks of the functions that encode images, and of the calls that bring their features.

    Args:
        model, base: the whole model, and the module whose forward joins vision and text.
        family: of the model.
        context: calls in flight.
        acts: whether a method acts in the vision tower, so that features from elsewhere would be without it.
        drops: whether the language model's hooks can leave tokens out.

    Attributes:
        left: the visual tokens of the last encoding that a caller asked for, those that are left; None before there was one.
    """

    def __init__(
        self, model: nn.Module, base: nn.Module, family: Family, context: Context, *, acts: bool, drops: bool
    ) -> None:
        self.base, self.family, self.context, self.acts, self.drops = base, family, context, acts, drops
        self.model: Any = model
        self.left: Tokens | None = None
        self._memory, self._number, self._warned = Remembered(acts), itertools.count(), False
        self.forms: dict[str, Form] = {}  # of features, by pixels

    def attach(self, hooks: Hooks) -> None:
        """Hook the model: around what the tower's hooks make of features, and before the language model's hooks."""
        for name, pixels in _FUNCTIONS.items():
            if hasattr(self.base, name):
                hooks.around(self.base, name, partial(self._begin, pixels), self._end)
        if hasattr(self.model, "generate"):
            hooks.instead(self.model, "generate", self._generate)
        hooks.pre(self.base, self._forward, rests=True)
        hooks.post(self.base, self._forwarded, always=True, rests=True)

    # -- features that are made ---------------------------------------------------------------------------------------

    def _begin(self, pixels: str, *args: Any, **kwargs: Any) -> None:
        if self.context.prompt is None and not self.context.encoding:
            self.context.records = []
            self.context.begun = Begun()
        self.context.encoding.append(pixels)
        layer, usual = kwargs.get("vision_feature_layer"), getattr(self.model.config, "vision_feature_layer", None)
        if self.acts and layer is not None and layer != usual:
            raise InputError(
                f"vision_feature_layer={layer} is not the config's, {usual}, for which the method acts in the tower: set "
                "config.vision_feature_layer before foveate.compress()"
            )

    def _end(self, output: Any) -> Any:
        """Features are ready, of the outermost of the functions: one may call another."""
        pixels, nested = self.context.encoding.pop(), bool(self.context.encoding)
        record = self.context.records[-1] if self.context.records else None
        if nested or output is None or record is None or record.pixels:
            return output
        whole = record.order.starts[-1]
        features, hole, number = pooled_of(output, whole), record.hole, next(self._number)
        pieces = pieces_of(features)
        self.forms[pixels] = Form.of(features, getattr(output, "deepstack_features", None) or ())
        starts = self._starts(pieces, record)
        if hole is not None:
            pieces = [mark(piece, hole[a : a + len(piece)], number, a) for piece, a in zip(pieces, starts)]
        record.pixels, record.parts = pixels, tuple(with_newlines(pieces, record))
        encodings, images = encodings_of(record, number), images_in(record)
        self._memory.add(encodings, images, self._dtype)
        if self.context.prompt is not None:
            return output if hole is None else with_pooled(output, in_form_of(features, pieces), whole)
        self.context.records, self.left = [], left_in(record)
        self.context.encoded = encodings, self.forms[pixels].width
        if hole is None:
            return output
        self._memory.add(encodings, [without_holes(image, e.hole) for e, image in zip(encodings, images)], self._dtype)
        finite = [without_holes(piece, hole[a : a + len(piece)]) for piece, a in zip(pieces, starts)]
        return with_deepstack(
            with_pooled(output, in_form_of(features, finite), whole),
            lambda piece, a: without_holes(piece, hole[a : a + len(piece)]),
        )

    def _starts(self, pieces: Sequence[Tensor], record: Record) -> Sequence[int]:
        """Number of the first feature of each piece; to some, stock code adds newlines later."""
        n, starts = sum(map(len, pieces)), record.order.starts
        if n > starts[-1] or (n < starts[-1] and len(pieces) != len(starts) - 1):
            raise UnsupportedModelError(
                f"{type(self.base).__name__} returned {n} features of images, and the vision tower gave {starts[-1]}: mend "
                f"what the family {self.family.name!r} says of its output module"
            )
        return starts_of(pieces) if n == starts[-1] else starts

    def adopt(self, pixels: str, images: Sequence[Encoding], parts: Sequence[Tensor], width: int | None) -> None:
        """Remember images that were encoded elsewhere, of which ``parts`` are left, as if it had been here.

        ``width``: features of each image, where stock code has all of them in one tensor.
        """
        self._memory.add(self._numbered(images), parts, self._dtype)
        self.forms[pixels] = Form(width)

    def adopt_stored(
        self,
        pixels: str,
        images: Sequence[Encoding],
        rows: Sequence[Tensor],
        stored: Sequence[Sequence[Tensor]],
        width: int | None,
    ) -> list[Tensor]:
        """The same of images of whose patches no feature is left, but ``stored`` for each of their frames (`Record.stored`).

        ``rows`` are those features of each that are no patch's, such as newlines.

        Returns:
            What stands for each of them in this call: rows ``(n, C)``, of which those of patches say that they have left.
        """
        known, marked = self._numbered(images), []
        for e, own in zip(known, rows):
            hole = (e.patch >= 0).to(own.device)
            whole = own.new_zeros(len(hole), own.shape[-1])
            whole[~hole] = own
            marked.append(mark(whole, hole, e.number, e.start))
        self._memory.add(known, marked, self._dtype)
        self.forms[pixels] = Form(width)
        self.context.stored |= {(e.number, e.start): parts for e, parts in zip(known, stored)}
        return marked

    def _numbered(self, images: Sequence[Encoding]) -> list[Encoding]:
        number, starts = next(self._number), offsets([len(image.patch) for image in images])
        return [replace(image, number=number, start=start) for image, start in zip(images, starts)]

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    # -- calls that bring features ------------------------------------------------------------------------------------

    def _generate(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.context.prompt is not None:
            return stock(*args, **kwargs)
        kwargs = self._open(
            kwargs, kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None)), alone=False
        )
        try:
            return stock(*args, **kwargs)
        finally:
            self.context.prompt, self.context.stored = None, {}

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.context.prompt is not None:
            return None
        return args, self._open(kwargs, kwargs.get("input_ids", args[0] if args else None), alone=True)

    def _forwarded(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.context.prompt is not None and self.context.prompt.alone:
            self.context.prompt, self.context.stored = None, {}

    def _open(self, kwargs: dict[str, Any], ids: Any, alone: bool) -> dict[str, Any]:
        """A prompt begins: take in the features that come with it."""
        context = self.context
        context.records, context.encoding, context.prompt = [], [], Prompt(alone, 0 if alone else _length(kwargs, ids))
        context.begun = Begun()
        if isinstance(ids, Tensor) and ids.dim() == 2:
            context.prompt.ids = ids
        try:
            if isinstance(kwargs.get("mm_encoder_outputs"), dict):  # stock code repeats features for beams in place
                outputs = {kind: copy.copy(output) for kind, output in kwargs["mm_encoder_outputs"].items()}
                kwargs = {**kwargs, "mm_encoder_outputs": outputs}
            embeds, encoded = kwargs.get("inputs_embeds"), encoded_of(kwargs)
            for pixels in self.family.modalities:
                if KINDS[pixels] in encoded:
                    kwargs = {**kwargs, **self._adopt(kwargs, pixels, encoded[KINDS[pixels]])}
                elif isinstance(embeds, Tensor) and kwargs.get(pixels) is None:
                    self._find_merged(kwargs, pixels, ids, embeds)
            if isinstance(embeds, Tensor) and not encoded and not self._is_said(kwargs, ids):
                self._search_merged(kwargs, embeds)
        except BaseException:
            context.prompt = None
            raise
        return kwargs

    def _adopt(self, kwargs: dict[str, Any], pixels: str, output: Any) -> dict[str, Any]:
        """Features come as such: note what they are; the arguments that change, as some are not at full length."""
        features = output if isinstance(output, (Tensor, list)) else output.pooler_output
        pieces = pieces_of(features)
        known = self._find(kwargs, pixels, pieces)
        if known is None:
            self._note_unknown(kwargs, pixels, pieces, "give the pixels, or encode them with")
            return {}
        if all(len(encoding.patch) == where.stop - where.start for encoding, where in known):
            self._note(kwargs, pixels, known, pieces)
            return {}
        whole = completed(known, torch.cat(pieces), 0)
        self._note(kwargs, pixels, known, [whole])
        width = self.forms[pixels].width if pixels in self.forms else None
        if width is not None:
            given: Any = whole.view(-1, width, whole.shape[-1])
        elif isinstance(features, Tensor):
            given = whole
        else:
            given = type(features)(completed(known, piece, a) for piece, a in zip(pieces, starts_of(pieces)))
        if output is not features:
            output.pooler_output = given
            given = with_deepstack(output, partial(completed, known))
        if kwargs.get("mm_encoder_outputs") is None:
            return {"image_hidden_states": given}
        return {"mm_encoder_outputs": {**kwargs["mm_encoder_outputs"], KINDS[pixels]: given}}

    def _find(self, kwargs: dict[str, Any], pixels: str, pieces: Sequence[Tensor]) -> Known | None:
        said = self._said(kwargs, pixels)
        if not pieces:
            return None
        ends = {*starts_of(pieces), sum(map(len, pieces))}
        return self._memory.find(torch.cat(list(pieces)), ends, None if said is None else frames_of(said))

    def _find_merged(self, kwargs: dict[str, Any], pixels: str, ids: Any, embeds: Tensor) -> None:
        """Features are in place already, where token ids or types say."""
        types, length = kwargs.get("mm_token_type_ids"), embeds.shape[1]
        token = int(getattr(self.model.config, self.family.modalities[pixels]))
        if isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] >= length:
            place = ids[:, -length:] == token
        elif isinstance(types, Tensor) and types.shape[1] >= length:
            place = types[:, -length:] == _TYPES[pixels]
        else:
            return
        rows = embeds[place.to(embeds.device)]
        placeholder = self.model.get_input_embeddings()(torch.tensor(token, device=rows.device))
        if len(rows) and not bool((rows == placeholder).all()):
            self._note_merged(kwargs, pixels, place, rows)

    def _is_said(self, kwargs: dict[str, Any], ids: Any) -> bool:
        """Tell whether ids, types or pixels tell where images are."""
        given = [ids, kwargs.get("mm_token_type_ids"), *(kwargs.get(pixels) for pixels in self.family.modalities)]
        return any(each is not None for each in given)

    def _search_merged(self, kwargs: dict[str, Any], embeds: Tensor) -> None:
        """Nothing says where images are: those that were encoded here are found, no others."""
        if embeds.shape[1] < 2:  # a generated token
            return
        place = torch.zeros(embeds.shape[:2], dtype=torch.bool)
        for row, line in zip(place, embeds):
            for where in self._memory.search(line):
                row[where] = True
        if bool((holes(embeds) & ~place.to(embeds.device)).any()):
            raise InputError(
                "inputs_embeds holds features of a compressed image, and nothing says where the image is: give input_ids "
                "(to generate()) or mm_token_type_ids with it, or the features as mm_encoder_outputs"
            )
        if bool(place.any()):
            self._note_merged(kwargs, next(iter(self.family.modalities)), place, embeds[place.to(embeds.device)])
        elif not self._warned:
            self._warned = True
            warnings.warn(
                "foveate was given inputs_embeds without input_ids or mm_token_type_ids, and takes all of it for text: give "
                "one of them if there is an image in it",
                stacklevel=2,
            )

    # -- what is known of them ----------------------------------------------------------------------------------------

    def _note_merged(self, kwargs: dict[str, Any], pixels: str, place: Tensor, rows: Tensor) -> None:
        known, prompt = self._find(kwargs, pixels, [rows]), self.context.prompt
        if known is None:
            way = "or fewer than the image has places: give the pixels, or as mm_encoder_outputs what you get of"
            self._note_unknown(kwargs, pixels, [rows], way)
        elif any(len(encoding.patch) > where.stop - where.start for encoding, where in known):
            raise InputError(
                "inputs_embeds holds what is left of an image's features, fewer than its placeholders: give the features as "
                "mm_encoder_outputs with input_ids, and they come to their places"
            )
        else:
            self._note(kwargs, pixels, known, [rows])
        if prompt is not None:
            prompt.places[pixels] = place

    def _note(self, kwargs: dict[str, Any], pixels: str, known: Known, rows: Sequence[Tensor]) -> None:
        """Features that were encoded under this handle: as if the tower had made them just now."""
        found = [encoding for encoding, _ in known]
        grid, said = [entry for encoding in found for entry in encoding.grid], self._said(kwargs, pixels)
        if not self.drops and any(encoding.hole is not None for encoding in found):
            raise InputError(
                f"these {KINDS[pixels]} features were encoded under another handle, by a method that acts in the vision tower, "
                f"and nothing here can leave out what it dropped: encode them with get_{KINDS[pixels]}_features of this model"
            )
        if said is not None and frames_of(said) != frames_of(grid):
            raise InputError(
                f"{_GRIDS[pixels]} says {_grids(said)}, but the features with it are of images of {_grids(grid)} (frames, "
                "height and width in tokens): give the grids of these images, in their order"
            )
        stored = [part for e in found for part in self.context.stored.get((e.number, e.start), ())]
        self._keep(record_of(found, pixels, rows, stored))

    def _note_unknown(self, kwargs: dict[str, Any], pixels: str, rows: Sequence[Tensor], way: str) -> None:
        """Features that were not encoded under this handle: what is known of them is what the caller says."""
        if self.acts:
            raise InputError(
                f"these {KINDS[pixels]} features were not encoded under this handle, whose method acts in the vision tower, "
                f"or were changed since (by another dtype, too): {way} get_{KINDS[pixels]}_features while it is attached"
            )
        grid, n = self._said(kwargs, pixels), sum(map(len, rows))
        if grid is None:
            return
        counts = [t * h * w for t, h, w in grid]
        if sum(counts) != n:
            raise InputError(
                f"{_GRIDS[pixels]} says {_grids(grid)} (frames, height and width in tokens), which is {sum(counts)} features, "
                f"but {n} came with it: give the grids of these images"
            )
        order = Order(grid, torch.arange(n), tuple(offsets(counts)))
        self._keep(Record(order, None, None, None, pixels, tuple(row.detach() for row in rows)))

    def _keep(self, record: Record) -> None:
        if not self.context.records:
            self.context.trace = self.context.new_trace()
        self.context.records.append(record)
        self.context.trace.views += record.order.grid
        self.context.trace.features += record.order.starts[-1]

    def _said(self, kwargs: dict[str, Any], pixels: str) -> Grid | None:
        """Return the grids that the caller gives with features, in tokens; None: the family takes none, or something else."""
        grid, tower = kwargs.get(_GRIDS[pixels]), self.family.tower
        if not isinstance(grid, Tensor) or tower.layout != "packed" or tower.arrangements:
            return None
        side = isqrt(tower.unit(self.model.config))
        return [(t, h // side, w // side) for t, h, w in grid.tolist()]


def _length(kwargs: dict[str, Any], ids: Any) -> int:
    """Length of the whole prompt of ``generate()``, with what the cache holds of it."""
    given = [ids, kwargs.get("attention_mask"), kwargs.get("inputs_embeds")]
    return max((each.shape[1] for each in given if isinstance(each, Tensor) and each.dim() > 1), default=0)


def encoded_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Features that a caller brings, by ``image`` and ``video``."""
    encoded = kwargs.get("mm_encoder_outputs")
    if encoded is None:
        encoded = kwargs.get("image_hidden_states")  # what some models called it before
    encoded = {"image": encoded} if isinstance(encoded, (Tensor, list)) else encoded or {}
    return {kind: output for kind, output in encoded.items() if output is not None}


def _grids(grid: Grid) -> str:
    return ", ".join("x".join(map(str, entry)) for entry in grid)
