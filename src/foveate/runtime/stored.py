"""Images that are encoded once, kept in a file, and asked about in any number of prompts.

`Memories` makes a `Memory` of what a method leaves of images, and takes one as ``memory=`` in ``generate()`` and in a call of
the model: there it becomes ``mm_encoder_outputs``, which stock code takes in place of pixels. What is left may be features, or
what the language model has made of them (`foveate.runtime.recalling`); then the features say only that they have left.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.amounts import amount
from foveate.errors import InputError, UnsupportedModelError, first_line
from foveate.method import Host, Method
from foveate.ops.segments import offsets
from foveate.runtime.context import Record
from foveate.runtime.encodings import KINDS, Encodings
from foveate.runtime.hooks import Hooks
from foveate.runtime.memory import Encoding, encodings_of
from foveate.runtime.recalling import Reader, Tape, weights_of

_FUNCTIONS = {"pixel_values": "get_image_features", "pixel_values_videos": "get_video_features"}
_GEOMETRY = ("patch", "hole", "sizes", "coords", "home")  # tensors of an `Encoding`, some of which may be None


@dataclass(frozen=True)
class Maker:
    """What has encoded images: they go to a prompt where it is the same.

    Attributes:
        family, width: of the model, and channels of its language model.
        method: the parts of the method that a memory depends on, as Python writes them: those that act before the language
            model, and the one that appends what is kept.
        weights: some of the weights that made what is kept; (): they were not at hand.
    """

    family: str
    width: int
    method: tuple[str, ...]
    weights: tuple[float, ...]

    def refuse(self, other: Maker) -> None:
        """Raise `InputError` unless ``other`` makes the same of an image."""
        if (self.family, self.width) != (other.family, other.width):
            raise InputError(
                f"this memory is of a {other.family} with {other.width} channels, and the model is a {self.family} with "
                f"{self.width}: use it with the model that encoded it"
            )
        if self.method != other.method:
            raise InputError(
                f"this memory was made with {_names(other.method)}, and the method attached here is {_names(self.method)} "
                "(as far as a memory depends on it): attach that one, or encode the images again"
            )
        mine, theirs = torch.tensor(self.weights), torch.tensor(other.weights)
        if len(mine) and len(theirs) and (len(mine) != len(theirs) or not torch.allclose(mine, theirs, 2e-2, 1e-3)):
            raise InputError(
                f"this memory is of another {other.family}, whose projector or learned parts have other weights: use it with "
                "the model that encoded it"
            )


def _counted(memories: Sequence[Memory]) -> str:
    """``2 images and 1 video``."""
    counts = {kind: sum(len(one.images) for one in memories if one.kind == kind) for kind in ("image", "video")}
    return " and ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in counts.items() if n) or "nothing"


def _names(method: Sequence[str]) -> str:
    return " + ".join(method) or "a method that leaves features as they are"


@dataclass(frozen=True, eq=False)
class Memory:
    """Images, or videos, as a method has left them. `foveate.Handle.encode` makes it.

    Give it to ``model.generate(..., memory=memory)``, or to ``model(...)``, in place of pixels, while the same method is
    attached to the same model; or a list of memories, in the order of their images in the prompts.

    Attributes:
        kind: what was encoded.
        features: ``(n, C)`` features that are left, image after image.
        deepstack: ``(n, C)`` features that each of the first layers of the language model adds to them, where a family has
            such.
        images: where the features of each image are in it.
        maker: the model and the method.
        width: features of each image, where stock code has all of them in one tensor; 0: in one of rows; None: in several.
        apart: whether stock code has an image's ``deepstack`` in a tensor of its own.
        stored: of a method that appends tokens to an image which alone the text sees (`Method.stores`), of each image or
            frame ``(L, m, C)``: what each decoder layer is given of these, of which it makes keys and values at their place in
            a prompt. Then there are no features of patches. (): there are.
    """

    kind: Literal["image", "video"]
    features: Tensor
    deepstack: tuple[Tensor, ...]
    images: tuple[Encoding, ...]
    maker: Maker
    width: int | None
    apart: bool
    stored: tuple[Tensor, ...] = ()

    def __repr__(self) -> str:
        """Return a sentence: the features themselves would fill screens."""
        stock = sum(len(image.patch) for image in self.images)
        left = f"{sum(self.counts)} tokens in place of" if self.stored else f"{len(self.features)} of"
        return (
            f"<Memory of {_counted([self])}: {left} {stock}{'' if self.stored else ' tokens'}, {amount(self.nbytes, 'B')}, "
            f"from {self.maker.family} with {_names(self.maker.method)}>"
        )

    @property
    def counts(self) -> list[int]:
        """How many tokens are left of each image, or stand for it."""
        if self.stored:
            return [sum(part.shape[1] for part in parts) for parts in self.by_image]
        return [len(e.patch) if e.hole is None else int((~e.hole).sum()) for e in self.images]

    @property
    def by_image(self) -> list[tuple[Tensor, ...]]:
        """What is ``stored`` of the frames of each image."""
        ends = offsets([len(image.frames) for image in self.images])
        return [self.stored[a:b] for a, b in zip(ends, ends[1:])]

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(each.nbytes for each in (self.features, *self.deepstack, *self.stored))

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the memory to a safetensors file."""
        from safetensors.torch import save_file

        tensors = {"features": self.features, **{f"deepstack.{i}": layer for i, layer in enumerate(self.deepstack)}}
        tensors |= {f"stored.{i}": part for i, part in enumerate(self.stored)}
        for i, image in enumerate(self.images):
            own = {f"image.{i}.{name}": getattr(image, name) for name in _GEOMETRY}
            tensors |= {name: tensor for name, tensor in own.items() if tensor is not None}
        about = {
            **{name: getattr(self, name) for name in ("kind", "width", "apart")},
            "maker": vars(self.maker),
            "layers": len(self.deepstack),
            "stored": len(self.stored),
            "grids": [image.grid for image in self.images],
        }
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            save_file(tensors, os.fspath(file), metadata={"foveate": json.dumps(about)})
        except Exception as error:  # a safetensors error is of a class of its own
            raise InputError(f"cannot write {os.fspath(file)!r}: {first_line(error)}") from None

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Memory:
        """Read a memory that `save` has written. This needs no model."""
        from safetensors import safe_open

        try:
            with safe_open(os.fspath(file), framework="pt") as opened:
                about = json.loads(opened.metadata()["foveate"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            images = tuple(_image(i, grid, tensors) for i, grid in enumerate(about["grids"]))
            deepstack = tuple(tensors[f"deepstack.{i}"] for i in range(about["layers"]))
            stored = tuple(tensors[f"stored.{i}"] for i in range(about.get("stored", 0)))
            said = about["maker"]
            maker = Maker(said["family"], said["width"], tuple(said["method"]), tuple(said["weights"]))
            return cls(
                about["kind"], tensors["features"], deepstack, images, maker, about["width"], about["apart"], stored
            )
        except FileNotFoundError:
            raise InputError(f"there is no file {os.fspath(file)!r}: Memory.save writes one") from None
        except Exception as error:
            raise InputError(f"{os.fspath(file)!r} is not what Memory.save writes: {first_line(error)}") from None


class Memories:
    """Makes memories on a model, and takes them where it is called.

    Args:
        model, base: the whole model, and the module whose forward joins vision and text.
        encodings: knows what was encoded.
        host: the model, as methods know it.
        methods: those that act before the language model.
        reader: what keeps more than features, if anything does.
    """

    def __init__(
        self,
        model: Any,
        base: nn.Module,
        encodings: Encodings,
        host: Host,
        methods: Sequence[Method],
        reader: Reader | None = None,
    ) -> None:
        self.model, self.base, self.encodings, self.host, self.reader = model, base, encodings, host, reader
        self.methods = tuple(map(repr, [*methods, *([] if reader is None else [reader.method])]))

    @property
    def maker(self) -> Maker:
        """The model, as it is now, and the method."""
        projector = self.base.get_submodule(self.encodings.family.tower.output)
        weights = weights_of(projector) if self.reader is None else self.reader.weights_with(projector)
        return Maker(self.host.family, self.host.width, self.methods, weights)

    def attach(self, hooks: Hooks) -> None:
        """Take ``memory=`` where a prompt comes in, before `Encodings` looks at it."""
        if hasattr(self.model, "generate"):
            hooks.instead(self.model, "generate", self._generate)
        hooks.pre(self.model, self._forward)

    def encode(self, inputs: Mapping[str, Any]) -> Memory:
        """Return what the method leaves of the images, or of the videos, among the ``inputs`` that a processor gives."""
        found = [pixels for pixels in _FUNCTIONS if inputs.get(pixels) is not None]
        if len(found) != 1 or not hasattr(self.base, _FUNCTIONS[found[0]]):
            raise InputError(
                f"encode() takes images or videos of this model, and was given {', '.join(found) or 'no pixels'}: give what "
                "the processor makes of one kind of them"
            )
        (pixels,) = found
        if self.reader is not None:
            return self._read(inputs, pixels, self.reader)
        function = getattr(self.base, _FUNCTIONS[pixels])
        known = inspect.signature(function).parameters
        with torch.no_grad():
            output = function(**{name: value for name, value in inputs.items() if name in known and value is not None})
        images, width = self.encodings.context.encoded
        parts, layers = output.pooler_output, getattr(output, "deepstack_features", None) or []
        one = isinstance(parts, Tensor)
        memory = Memory(
            "video" if "videos" in pixels else "image",
            _rows([parts] if one else parts),
            tuple(_rows([layer] if isinstance(layer, Tensor) else layer) for layer in layers),
            tuple(images),
            self.maker,
            (width or 0) if one or width else None,
            any(not isinstance(layer, Tensor) for layer in layers),
        )
        if sum(memory.counts) != len(memory.features):
            raise UnsupportedModelError(
                f"{len(memory.features)} features are left of {len(images)} images, and {sum(memory.counts)} were expected: "
                "stock code adds others, so give the model the pixels"
            )
        return memory

    def _read(self, inputs: Mapping[str, Any], pixels: str, reader: Reader) -> Memory:
        """Let the language model read the images once, and keep what it makes of the tokens that are appended to them."""
        reader.check()
        if inputs.get("input_ids") is None:
            raise InputError(
                f"{reader.method.name()} keeps what the language model makes of an image, so encode() wants input_ids, too: "
                "give what the processor makes of a prompt with the images, whatever it asks"
            )
        context, one = self.encodings.context, dict[str, int]()
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            one["logits_to_keep"] = 1
        context.tape = tape = Tape(reader.method.name())
        try:
            with torch.no_grad():
                given = {name: value for name, value in inputs.items() if value is not None and name != "labels"}
                self.model(**given, **one)
        finally:
            context.tape = None
        found = [
            (e, rows) for record in tape.records if record.pixels == pixels for e, rows in _without_patches(record)
        ]
        if len(tape.counts) != sum(len(image.frames) for image, _ in found):
            raise InputError(
                f"encode() was given {len(found)} {KINDS[pixels]}s, and its prompts have places for others: give what the "
                "processor makes of images and prompts together"
            )
        form, features = self.encodings.forms[pixels], torch.cat([rows for _, rows in found])
        if bool(features.isnan().any()):
            raise UnsupportedModelError(
                "stock code adds features to those of images, such as newlines, only in a prompt, so there is no memory of "
                "them: give the model the pixels"
            )
        return Memory(
            "video" if "videos" in pixels else "image",
            features,
            (torch.zeros_like(features),) * form.layers,
            tuple(image for image, _ in found),
            self.maker,
            (form.width or 0) if form.rows else None,
            form.apart,
            tuple(tape.of_frames()),
        )

    def _generate(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return stock(*args, **self._recalled(kwargs))

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (args, self._recalled(kwargs)) if "memory" in kwargs else None

    def _recalled(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a call, with features in place of memories."""
        memory = kwargs.get("memory")
        kwargs = {name: value for name, value in kwargs.items() if name != "memory"}
        if memory is None:
            return kwargs
        memories = [memory] if isinstance(memory, Memory) else list(memory)
        wrong = [each for each in memories if not isinstance(each, Memory)]
        if wrong:
            raise InputError(
                f"memory= holds a {type(wrong[0]).__name__}: give what Handle.encode or Memory.load returned"
            )
        clash = [name for name in (*_FUNCTIONS, "mm_encoder_outputs") if kwargs.get(name) is not None]
        if clash:
            raise InputError(f"memory= stands in place of {' and '.join(clash)}: leave {clash[0]} out")
        if "mm_encoder_outputs" not in inspect.signature(self.base.forward).parameters:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} of this transformers takes no features of images, so no memory: give it the "
                "pixels, or install a later one"
            )
        if self.reader is not None:
            self.reader.check()
        mine = self.maker
        for each in memories:
            mine.refuse(each.maker)
        ids = kwargs.get("input_ids", kwargs.get("inputs"))
        if isinstance(ids, Tensor):
            self._check_fit(memories, ids)
        return {**kwargs, "mm_encoder_outputs": self._outputs(memories)}

    def _check_fit(self, memories: Sequence[Memory], ids: Tensor) -> None:
        """Raise `InputError` unless the prompts have a place for every token of the images, and no others."""
        config, places, tokens = self.base.config, dict[int, int](), dict[int, int]()
        for pixels, kind in KINDS.items():
            token = getattr(config, self.encodings.family.modalities.get(pixels, ""), None)
            if token is not None:
                mine = [image for memory in memories if memory.kind == kind for image in memory.images]
                tokens[token] = tokens.get(token, 0) + sum(len(image.patch) for image in mine)
                places[token] = int((ids == token).sum())
        if places != tokens:
            raise InputError(
                f"memory= holds {_counted(memories)}, of {sum(tokens.values())} tokens, and the prompts have places for "
                f"{sum(places.values())}: give the memory of every image, in the order of the prompts (memory=[first, second])"
            )

    def _outputs(self, memories: Sequence[Memory]) -> dict[str, Any]:
        """Memories as the model's own functions return features, by kind."""
        weight = self.model.get_input_embeddings().weight
        outputs = {}
        for pixels, kind in KINDS.items():
            mine = [memory for memory in memories if memory.kind == kind]
            if not mine:
                continue
            images = [image for memory in mine for image in memory.images]
            counts, width = [n for memory in mine for n in memory.counts], mine[0].width
            features, *layers = (
                torch.cat([layer.to(weight.device, weight.dtype) for layer in each])
                for each in zip(*((memory.features, *memory.deepstack) for memory in mine))
            )
            whole = all(image.hole is None for image in images)
            parts: Sequence[Tensor]
            if mine[0].stored:
                stored = [part for memory in mine for part in memory.by_image]
                rows = features.split([int((image.patch < 0).sum()) for image in images])
                parts = self.encodings.adopt_stored(pixels, images, rows, stored, width or None)
                features, counts, whole = torch.cat(parts), [len(part) for part in parts], True
                layers = [torch.zeros_like(features) for _ in layers]
            else:
                parts = features.split(counts)
                self.encodings.adopt(pixels, images, parts, width or None)
            given: Any = parts if width is None else features
            if width and whole:
                given = features.view(-1, width, features.shape[-1])
            outputs[kind] = self._output(given, [layer.split(counts) if mine[0].apart else layer for layer in layers])
        return outputs

    def _output(self, features: Any, layers: list[Any]) -> Any:
        if not layers:
            return BaseModelOutputWithPooling(pooler_output=features)
        known = vars(sys.modules[type(self.base).__module__]).values()
        kind: Any = next(each for each in known if "deepstack_features" in getattr(each, "__dataclass_fields__", {}))
        return kind(pooler_output=features, deepstack_features=layers)


def _without_patches(record: Record) -> list[tuple[Encoding, Tensor]]:
    """Each image of a tower call, as if all of its patches had left, and its features that are no patch's, such as newlines."""
    found = []
    for image, end in zip(encodings_of(record, 0), record.order.starts[1:]):
        patch = image.patch >= 0
        rows = record.features[image.start : end][~patch.to(record.features.device)]
        whole = replace(image, start=0, hole=patch, sizes=None, coords=None, home=None)
        found.append((whole, rows))
    return found


def _rows(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten(0, -2) for part in parts])


def _image(i: int, grid: Sequence[Sequence[int]], tensors: Mapping[str, Tensor]) -> Encoding:
    patch, hole, sizes, coords, home = (tensors.get(f"image.{i}.{name}") for name in _GEOMETRY)
    if patch is None:
        raise InputError(f"the places of image {i} are missing")
    return Encoding(0, 0, [(t, h, w) for t, h, w in grid], patch, hole, sizes, coords, home)
