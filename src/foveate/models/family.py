"""The vocabulary in which a family of models is described. Facts only; the runtime does the work.

Between the rows of the tower and the placeholders of the prompt stands stock code; a family says what it has of this:

* the output module (`Tower.output`: projector, merger) makes one row of a unit of ``u`` patches (`Tower.unit`). Units are
  what methods see as tokens, and stay or go whole;
* modules before it (`Tower.neck`), and modules that make features of the rows between two blocks as it does after the last
  (`Tower.taps`), which the language model adds between its layers (`Decoder.deepstack`);
* stock code may merge rows between two blocks (`Tower.merger`), after which a unit is fewer rows;
* stock code may put the patches of a unit together itself, out of rows in raster order (`Tower.joins`: pixel shuffle, pooling),
  or pool units (`Arrangement.pool`). It counts rows when it does, so they are full length again at the end of the tower;
* stock code may rearrange the rows that come out (`Arrangement`: tiles side by side, padding cut off, rows pooled, newline
  rows in between), after which the language model sees other spans than the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.errors import InputError

Grid = list[tuple[int, int, int]]  # one (frames, height, width) per image or video
Side = tuple[int, int]  # height and width of one frame
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@dataclass(frozen=True)
class View:
    """A rectangle of features: what the language model sees of an image or video, or of a part of it.

    Attributes:
        height, width, frames: its grid, in features, raster order. Every frame is a span.
        of: ``(height, width)`` of the rectangle of tower units that stock code pools to one frame; None: these very ones.
    """

    height: int
    width: int
    frames: int = 1
    of: tuple[int, int] | None = None


@dataclass(frozen=True)
class Arrangement:
    """What stock code does with the rows of the output module before they replace the placeholders.

    Whatever it is (tiles, unpadding, pooling, newlines), it is linear in those rows and in the newline row, so two facts
    tell all of it. The runtime runs `arrange` on rows of its own to learn which feature came from where:

    * a feature that comes from no row of the tower (a newline) stands for no patch. Methods do not see it, no budget
      counts it, and nothing drops it: it stays where it is, like text, also when its whole line is gone;
    * a row of the tower that reaches no feature (padding that is cut off) is a token to methods that act in the tower,
      which encodes it, and none to those that act in the language model;
    * where rows were dropped in the tower, a feature is the weighted mean of what is left of its rows, and a hole when
      nothing is left; the size of a merged token follows the same weights.

    Both functions take the arguments of the stock function that encodes a modality, by name, with tensors of integers as
    lists.

    Attributes:
        views: config, arguments -> the views of each image or video, in the order of its features.
        arrange: base model, arguments, rows ``(tiles, n, C)``, newline ``(C,)`` -> the features ``(R, C)`` of each image or
            video. The stock code itself, wherever it is a function.
        pool: base model, rows ``(tiles, n, C)`` of the tower without its special ones -> the rows ``(tiles, n', C)`` of which
            the output module makes features, where stock code pools them before it (linear, too); None: it does not.
    """

    views: Callable[[Any, Kwargs], list[list[View]]]
    arrange: Callable[[Any, Kwargs, Tensor, Tensor], Sequence[Tensor]]
    pool: Callable[[Any, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Merger:
    """A module that makes one row of several between two blocks of the tower (padded layout, all images in a single row).

    Attributes:
        module: its path under the tower.
        block: index of the block that it runs before.
        rows: how many rows become one: a square of patches, of which a unit has several.
        attention: name inside it of an attention within each square, whose linear layers work on every row; all others work
            on one square each.
        arguments: squares ``(W, rows, C)``, each in raster order -> the inputs of a call that makes ``(1, W, C)`` of them.
    """

    module: str
    block: Callable[[Any], int]
    rows: Callable[[Any], int]
    attention: str
    arguments: Callable[[Tensor], tuple[Args, Kwargs]]


@dataclass(frozen=True)
class Tower:
    """The vision tower. Blocks, and what is inside one, are called as in CLIP and SigLIP, unless a family says otherwise.

    Attributes:
        module: its path under the base model.
        blocks: path of the block list under the tower; "": it is not known (`unseen`).
        attention, mid_norm, ffn_end: names inside a block: the attention module; the norm whose input is the residual
            stream between attention and FFN; the module whose output is the FFN branch.
        ffn_scale: name inside a block of a parameter that the FFN branch is multiplied by afterwards (layer scale).
        attention_norm: name inside a block of the norm between the residual stream and the attention.
        query, attention_end: names inside the attention module of the first and the last linear layer that a query goes
            through; both work row by row.
        fused: the ``query`` layer makes keys and values as well, in its output channels after those of the queries.
        layout: ``padded`` ``(images, tokens, C)``, or all images one after another in a single row ``(1, tokens, C)`` with a
            mask or ``cu_seqlens`` that keep them apart; or ``packed`` ``(tokens, C)`` with ``cu_seqlens``; or ``row``, which is
            packed, but for the patches of an image, which stand in raster order (with ``joins``).
        canvas: images are padded to the largest of them before their patches are embedded; padded layout only.
        leading: special tokens before the patches of each image (CLS), padded layout only.
        unit: patches that become one token.
        merger: what makes fewer rows of them between two blocks, if anything does.
        joins: where stock code puts the patches of a unit together out of rows that stand in raster order of the patches
            (not in the packed layout): ``before`` the output module, or ``inside`` it. "": the output module does, and a
            packed tower has the patches of a unit one after another.
        states: where ``joins``, stock code takes the rows of the last block, too, out of the hidden states that the tower
            returns; otherwise they are the last hidden state, after the last norm.
        pooler: name under the tower of the module of its own that puts them together, where one does; it says itself
            which units there are, of images of one or another size.
        arrangements: name of the base model's function that encodes a modality -> what it does after the output module.
            Without it, the rows of that module are the features.
        output: path under the base model of the module after which rows are full length again (projector, merger). It gives
            one tensor, or a list with one for every image.
        neck: paths under the base model of the modules between the last block (where stock code puts patches together: what it
            makes of them) and ``output``, if any; the first sees that; linear and convolution layers work on one token each.
        tail: paths under the base model of modules that work on every feature after ``output``, whether anything is left of it.
        taps: path under the base model of a list of further modules that make features of the rows between two blocks, as
            ``output`` does after the last; "" where there are none. Packed layout only.
        features: fields of what the tower returns that hold rows of ``output`` and of ``taps``. Packed layout only.
        last_block: index of the last block that the language model's features depend on.
        grid: inputs of a tower call -> its images (tiles, where they are cut) and videos, in units. `InputError` for inputs of
            which stock code makes features that are no places of the image: they are refused where a method acts in the tower,
            and otherwise each run of placeholders is a span of one line.
        order: inputs of a tower call -> ``(units,)`` raster index of each unit in the sequence that the blocks see, or
            None where that is raster order.
        resize: inputs of a tower call and a new grid -> new inputs with every image resized (pixels site); None: the tower
            takes images of one size only.
        patches: inputs of a tower call -> ``(height, width)`` in patches of each image, where stock code leaves out last lines
            that fill no unit (padded layout, with ``joins``); None: units cover all. What is left out is encoded like the rest
            and belongs to no token: no method sees it, and nothing drops it.
        padded: inputs of a tower call -> rows of every image with the padding after its patches; None: there is none.
        around: tower and inputs of its call -> FLOPs of its linear layers and products before and after the blocks, which
            are the same whatever happens in them.
        segments: grid and block -> rows of each attention segment of that block (windows, all images in a single row); None:
            every frame, with its special tokens.
        block_args: token axis of every tensor argument of a block, by name; ``"seqlens"`` for cumulative lengths,
            ``"rotary"`` for a pair ``(cos, sin)`` of rows (or their angles alone), linear in the patch's y and x, each axis
            with angles below pi a patch (packed towers with a patch merger, and towers with a single row; ``(images, rows,
            d)`` in other padded ones).
        attention_args: the same of the attention module, for what blocks do not pass on; ``"mask"`` only.
        kept_rows: output rows per image that stand for no patch (a CLS that the projector lets through).
        unseen: of a tower of which no more is known than where it is: why, in words; "": it is known.
    """

    module: str
    layout: Literal["padded", "packed", "row"]
    output: str
    unit: Callable[[Any], int]
    last_block: Callable[[Any], int]
    grid: Callable[[Any, Args, Kwargs], Grid]
    resize: Callable[[Any, Args, Kwargs, Grid], tuple[Args, Kwargs]] | None
    blocks: str = "encoder.layers"
    attention: str = "self_attn"
    attention_norm: str = "layer_norm1"
    query: str = "q_proj"
    attention_end: str = "out_proj"
    mid_norm: str = "layer_norm2"
    ffn_end: str = "mlp"
    segments: Callable[[Any, Grid, int], list[int]] | None = None
    order: Callable[[Any, Args, Kwargs], Tensor | None] = lambda config, args, kwargs: None
    patches: Callable[[Any, Args, Kwargs], list[Side] | None] = lambda config, args, kwargs: None
    padded: Callable[[Any, Args, Kwargs], int | None] = lambda config, args, kwargs: None
    around: Callable[[Any, Args, Kwargs], int] = lambda tower, args, kwargs: 0
    states: bool = False
    pooler: str = ""
    neck: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()
    taps: str = ""
    features: tuple[str, ...] = ("pooler_output",)
    fused: bool = False
    leading: int = 0
    canvas: bool = True
    merger: Merger | None = None
    ffn_scale: str = ""
    joins: Literal["", "before", "inside"] = ""
    arrangements: Mapping[str, Arrangement] = field(default_factory=dict)
    kept_rows: Callable[[Any], int] = lambda config: 0
    block_args: Mapping[str, int | str] = field(default_factory=dict)
    attention_args: Mapping[str, Literal["mask"]] = field(default_factory=dict)
    unseen: str = ""

    def blocks_of(self, tower: nn.Module) -> list[nn.Module]:
        """The blocks of a tower; none of one that is not known."""
        return list(tower.get_submodule(self.blocks).children()) if self.blocks else []

    @property
    def beyond(self) -> bool:
        """Whether a packed tower leaves it to a module after it to make features."""
        return self.layout == "packed" and not self.output.startswith(f"{self.module}.")

    def rows(self, config: Any, grid: Grid, block: int, strays: Sequence[int] = ()) -> list[int]:
        """Rows of each attention segment of a block; of every image, ``strays`` belong to no unit."""
        if any(strays):
            rows = self.rows(config, grid, block)
            return [n + m for n, m in zip(rows, strays)] if len(rows) == len(strays) else [sum(rows) + sum(strays)]
        if self.segments is not None:
            return self.segments(config, grid, block)
        unit = self.unit(config)
        if self.merger is not None and block >= self.merger.block(config):
            unit //= self.merger.rows(config)
        return [height * width * unit + self.leading for frames, height, width in grid for _ in range(frames)]


def _nowhere(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    raise InputError("which places of an image its features are made of is not known")


def unseen(module: str, because: str) -> Tower:
    """A tower, or what stands for one, of which no more is known than where it is: methods act in the language model alone.

    There, each run of placeholders is a span of one line.
    """
    return Tower(
        module=module,
        blocks="",
        layout="padded",
        output=module,
        unit=lambda config: 1,
        last_block=lambda config: -1,
        grid=_nowhere,
        resize=None,
        unseen=because,
    )


@dataclass(frozen=True)
class Gated:
    """An FFN that is ``down(activation(gate(x)) * up(x))``.

    Attributes:
        gate, up, down: names of its linear layers; ``up`` is "" where ``gate`` makes both, one after the other.
        activation: name of the function that the gate goes through.
    """

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    activation: str = "act_fn"


@dataclass(frozen=True)
class Decoder:
    """The language model: a loop over layers and a final norm.

    Attributes:
        module: its path under the base model.
        layers, norm, rotary, attention, ffn: names under it (attention and ffn: under a layer).
        attention_norm: name under a layer of the norm between the residual stream and the attention; "" where there is none.
        latent: name under ``attention``, where that has it, of the linear layer that makes keys and values of what the cache
            holds, of all tokens at every step; other caches hold keys and values.
        query, key, value, attention_end: names under ``attention`` of the linear layers that make them, and of the last one
            that a query goes through; ``query`` and the last work row by row.
        gated: how a gated FFN may be built; the first of these that is there holds.
        experts: name under a layer of what works on the same rows beside its FFN, in some layers; "" where nothing does.
        layer_args: token axis of every tensor argument of a layer, by name; ``"mask"`` for the attention mask, ``"own"`` for
            ``(B, L, d)`` of what each token has had from the beginning, wherever it has moved. The batch axis is the one
            before it. (Rotary embeddings are ``(B, L, d)``, in M-RoPE models before 5.18 ``(3, B, L, d)``.)
        kinds: field of the language model's config with the kind of each layer, which `rotary` takes as a further argument;
            "" where all layers have the same rotary embeddings.
        rotary_of: config, layer -> name of the module that makes its rotary embeddings; None: all have those of ``rotary``.
        deepstack: names of two arguments of the language model, or none: a list of ``(visual tokens, C)`` that its loop adds to
            the visual tokens after layer 0, 1, ..., and the ``(B, L)`` mask of these tokens.
        shared: name, under ``attention``, of the flag of layers that have no keys and values of their own and attend to those
            of the last layer of their kind that has; "" where all have. They are the last ones, and stock code may go on from
            there with the last rows of the sequence alone (``logits_to_keep``).
        all_axes: layers are given position ids of all axes, ``(3, B, L)``, where those of text belong. Flash kernels, which
            alone read them, take them for borders of samples that are packed into a row.
        complete: fields of what the language model returns, if asked to, that must have a row for every token in every layer.
        recurrent: name, under a layer, of the module that some layers have in place of ``attention``, if any do. It carries a
            state from token to token, takes a ``(B, L)`` mask, and has a cache entry that holds this state and no keys.
        recurrence: this module and a number of tokens -> FLOPs of its matrix products and convolutions on them, those of its
            linear layers left out.
    """

    module: str = "language_model"
    layers: str = "layers"
    norm: str = "norm"
    rotary: str = "rotary_emb"
    attention: str = "self_attn"
    attention_norm: str = "input_layernorm"
    latent: str = "kv_b_proj"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    attention_end: str = "o_proj"
    ffn: str = "mlp"
    gated: tuple[Gated, ...] = (Gated(), Gated(gate="gate_up_proj", up="", activation="activation_fn"))
    experts: str = ""
    layer_args: Mapping[str, int | str] = field(
        default_factory=lambda: {"attention_mask": "mask", "position_embeddings": -2, "position_ids": -1}
    )
    kinds: str = ""
    rotary_of: Callable[[Any, int], str] | None = None
    deepstack: tuple[str, str] | tuple[()] = ()
    shared: str = ""
    all_axes: bool = False
    complete: tuple[str, ...] = ()
    recurrent: str = ""
    recurrence: Callable[[Any, int], int] = lambda module, tokens: 0


@dataclass(frozen=True)
class Denoising:
    """How a model writes that makes an answer in steps, each of which works on the whole of it, and not word by word.

    Attributes:
        steps: the model, or its config where there is no model -> steps of an answer, or of a part of it, at most.
        canvas: path under the model with the LM head of a second stack of layers, in which a step runs. Its tokens attend to
            each other, both ways, and to the KV cache that the language model has made of the prompt, and add nothing to
            that. Layers and what is in them are named and built as those of the `Decoder`. "": a step is a forward of the
            language model with all of the prompt and the answer, without a cache, in the model's own ``generate()``.
        around: the canvas and the inputs of its call -> FLOPs of its products outside of the layers.
    """

    steps: Callable[[Any], int]
    canvas: str = ""
    around: Callable[[Any, Args, Kwargs], int] = lambda canvas, args, kwargs: 0


#: Places where frames of a video may be known, by what stock code hands over: the whole video, or frame after frame.
IN_DECODER = frozenset({"lm_entry", "decoder", "decode", "cache"})
EVERYWHERE = IN_DECODER | {"pixels", "tower", "tower_output"}
NOWHERE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Family:
    """A family of vision-language models.

    Attributes:
        model_type: ``config.model_type``.
        tower_type: ``config.vision_config.model_type`` where the family comes with several towers; "" where it does not.
        alias: its name where that is not ``model_type``, as another family has it.
        also: further model types that are the same under other names, to the last module; a family file says them in ``ALSO``,
            as a family that is made of this one (``replace``) does not have them.
        tower, decoder: see there.
        denoising: of a model that writes in denoising steps; None: it writes word by word.
        base: path, under the model with the LM head, of the module whose forward joins vision and text; "" if it does itself.
        modalities: pixel argument of the base model's forward -> name of the token id in the config, in the order in
            which stock code calls the tower.
        frames: places (`Site.at`) where the frames of a video are known to be of one; elsewhere each is a clip of its own.
    """

    model_type: str
    tower: Tower
    decoder: Decoder = Decoder()
    base: str = "model"
    modalities: Mapping[str, str] = field(default_factory=lambda: {"pixel_values": "image_token_id"})
    tower_type: str = ""
    alias: str = ""
    also: tuple[str, ...] = ()
    frames: frozenset[str] = EVERYWHERE
    denoising: Denoising | None = None

    @property
    def name(self) -> str:
        """What it is called; its file is, too."""
        return self.alias or self.model_type

    @property
    def types(self) -> tuple[str, ...]:
        """Every ``config.model_type`` that it is the family of."""
        return (self.model_type, *self.also)

    @property
    def takes_videos(self) -> bool:
        """Whether an argument of the base model is the pixels of videos."""
        return any("video" in name for name in self.modalities)


def argument(args: Args, kwargs: Kwargs, position: int, name: str) -> Any:
    """Return an argument that stock code may pass by position or by name."""
    return kwargs[name] if name in kwargs else args[position]


def resize_images(images: Tensor, height: int, width: int) -> Tensor:
    """``(B, c, H, W)`` pixels to ``(B, c, height, width)``, antialiased bicubic, as image processors resize."""
    size = (height, width)
    resized = torch.nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return resized.to(images.dtype)
