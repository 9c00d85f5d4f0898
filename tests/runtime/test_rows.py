"""Towers that have all images one after another in a single row: each is what it is alone, whatever is dropped, parked or
merged. Against the stock tower run by hand, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import tiny
import torch
from calls import ROWS, close, generate
from plans import PLANS
from probes.synthetic import DropBlocks
from test_joined import Keep
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

import foveate
from foveate.errors import UnsupportedModelError
from foveate.method import Host, Method, Site
from foveate.models import list_families
from foveate.runtime.parking import Attending
from foveate.runtime.signals import Probe, Reading
from foveate.tokens import Reduction, Tokens

SINGLE = pytest.mark.parametrize("family", tiny.PIXTRAL)


@dataclass(frozen=True)
class Ragged(Method):
    """Some tokens of every image, irregularly, at one site; parked, if ``last`` says where they come back."""

    block: int = 1
    mid: bool = False
    last: int | None = None
    attend: bool = False
    move: float = 0.0
    kept: ClassVar[list[list[int]]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        first = Site("tower", self.block, where="mid" if self.mid else "before")
        if self.last is None:
            return [first]
        seen = [Site("tower", self.block, action="attend")] if self.attend else []
        return [replace(first, action="park"), *seen, Site("tower", self.last, action="restore")]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        stays = (tokens.index * 7 + tokens.segment) % (2 + tokens.segment % 3) == 0
        type(self).kept[:] = [tokens.index[stays & (tokens.segment == s)].tolist() for s in range(len(tokens.counts))]
        reduction = tokens.keep_mask(stays)
        if not self.move:
            return reduction
        return replace(reduction, coords=tokens.coords[reduction.keep] + self.move * torch.tensor([0.0, 1.0, -0.5]))


def images_of(batch: dict[str, Tensor]) -> list[Tensor]:
    """The pixels of each image, without its padding."""
    sizes = batch["image_sizes"].tolist()
    return [image[None, :, :h, :w] for image, (h, w) in zip(batch["pixel_values"], sizes, strict=True)]


def rotary(tower: Any, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines at any place of an image, from the definition: 10000^(-2i/d), even i for y and odd ones for x."""
    d = tower.config.head_dim
    base = tower.config.rope_parameters["rope_theta"]
    frequency = base ** (-torch.arange(0, d, 2).float() / d)
    angles = torch.cat([y[:, None] * frequency[::2], x[:, None] * frequency[1::2]], 1)
    both = torch.cat([angles, angles], 1)
    return both.cos(), both.sin()


def attend(attention: Any, x: Tensor, own: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
    """Attention of the rows ``own`` to all of ``x (n, C)``."""
    heads, d = attention.num_heads, attention.head_dim
    cos, sin = (part[:, None] for part in place)

    def turn(t: Tensor) -> Tensor:
        a, b = t.chunk(2, -1)
        return t * cos + torch.cat([-b, a], -1) * sin

    q, k, v = (layer(x).view(len(x), heads, d) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    logits = torch.einsum("qhd,khd->hqk", turn(q)[own], turn(k)) * d**-0.5
    return attention.o_proj(torch.einsum("hqk,khd->qhd", logits.softmax(-1), v).flatten(1))  # type: ignore[no-any-return]


def rows_of(units: Sequence[int], width: int, side: int) -> Tensor:
    """The patches of ``units`` of an image that is ``width`` patches wide, those of one in raster order."""
    across = width // side
    corners = [(u // across * side, u % across * side) for u in units]
    return torch.tensor(
        [(y + dy) * width + x + dx for y, x in corners for dy in range(side) for dx in range(side)], dtype=torch.long
    )


def features_by_hand(
    family: str, model: Any, batch: dict[str, Tensor], kept: list[list[int]], method: Ragged
) -> list[Tensor]:
    """What the projector makes of each image alone; of units that are gone, nothing. Patches of no unit stay."""
    tower, side = tiny.tower(model), math.isqrt(tiny.rows_of.UNIT[family])
    out = []
    for image, units in zip(images_of(batch), kept, strict=True):
        patches = tower.patch_conv(image)
        height, width = patches.shape[-2:]
        hidden = tower.ln_pre(patches.flatten(2).transpose(1, 2))[0]
        y, x = torch.arange(height).repeat_interleave(width).float(), torch.arange(width).repeat(height).float()
        every = rows_of(range(height // side * (width // side)), width, side)
        strays = torch.tensor(sorted({*range(height * width)} - {*every.tolist()}), dtype=torch.long)
        rows = torch.cat([rows_of(units, width, side), strays])
        present, parked = torch.arange(len(hidden)), hidden
        for i, block in enumerate(tiny.blocks(model)):
            if i == method.last:
                hidden, present = parked.index_copy(0, present, hidden), torch.arange(len(parked))
            if i == method.block and not method.mid:
                parked, hidden, present = hidden, hidden[rows], rows
                y[every], x[every] = (
                    y[every] + method.move * side,
                    x[every] - method.move * 0.5 * side,
                )  # what is left moves
            seen, own = hidden, torch.arange(len(hidden))
            if method.attend and i == method.block:
                seen, own = parked.index_copy(0, present, hidden), present
            place = tuple(part[present if len(seen) == len(present) else slice(None)] for part in rotary(tower, y, x))
            normed = block.attention_norm(seen)
            hidden = hidden + attend(block.attention, normed, own, place)  # type: ignore[arg-type]
            if i == method.block and method.mid:
                parked, hidden, present = hidden, hidden[rows], rows
            hidden = hidden + block.feed_forward(block.ffn_norm(hidden))
        projector = model.model.multi_modal_projector
        if family == "llava_pixtral":
            order = present.argsort()
            out.append(projector(hidden[order]))
            continue
        hidden = hidden[: len(units) * side**2] if method.last is None else hidden[every]
        joined = projector.norm(hidden).view(-1, 4, hidden.shape[-1]).transpose(1, 2).flatten(1)
        joined = projector.patch_merger.merging_layer(joined)
        out.append(projector.linear_2(projector.act(projector.linear_1(joined))))
    return out


KINDS = pytest.mark.parametrize(
    "method",
    [
        Ragged(block=1),
        Ragged(block=3),
        Ragged(block=0, mid=True),
        Ragged(last=3),
        Ragged(mid=True, last=2),
        Ragged(last=3, attend=True),
        Ragged(block=2, move=0.25),
    ],
    ids=repr,
)


@SINGLE
@KINDS
def test_every_image_is_what_it_is_alone(family: str, impl: str, method: Ragged) -> None:
    compare(family, impl, method, tiny.inputs(family, ROWS[family]))


def compare(family: str, impl: str, method: Ragged, batch: dict[str, Tensor]) -> None:
    model = tiny.model(family, impl)
    with torch.no_grad(), foveate.compress(model, method) as handle:
        found = tiny.marked(model, batch).pooler_output
        report = handle.report()
    kept = [list(units) for units in Ragged.kept]
    assert len({len(units) for units in kept}) > 1
    assert report.flops["tower"] < report.full_flops["tower"]
    with torch.no_grad():
        expected = features_by_hand(family, model, batch, kept, method)
    for image, units, rows in zip(found, kept, expected, strict=True):
        if method.last is None:
            assert (~image[:, 0].isnan()).nonzero().flatten().tolist() == units
            close(image[units], rows)
        else:
            close(image, rows)


@dataclass(frozen=True)
class Hear(Method):
    """Notes attention received in the last block, of what is there."""

    heard: ClassVar[list[Tokens]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", 3, signals=("received", "keys")), Site("tower_output", signals=("received",))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        type(self).heard.append(tokens)
        return Reduction(torch.arange(len(tokens)), tokens.counts)


@SINGLE
@pytest.mark.parametrize("first", [Keep(), Ragged(block=1), Ragged(last=3), Ragged(last=3, attend=True)], ids=repr)
def test_attention_received_is_that_of_the_own_image(family: str, impl: str, first: Method) -> None:
    """A mean over the queries that see a token, not over those of the other images, too."""
    model = tiny.model(family, impl)
    Hear.heard.clear()
    with torch.no_grad(), foveate.compress(model, first + Hear()):
        model(**tiny.inputs(family, ROWS[family]))
        at_site, at_end = Hear.heard
        Hear.heard.clear()
        model(**tiny.inputs(family, ROWS[family], only=0))
    for together, alone in zip((at_site, at_end), Hear.heard, strict=True):
        close(together.received[: len(alone)], alone.received, 1e-5)


@SINGLE
def test_a_smaller_image_in_the_tower(family: str) -> None:
    """Features of a resized image are those that the stock tower makes of the smaller one."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, (8, 12), 5, (6, 4)]])
    given = dict(pixel_values=batch["pixel_values"], image_sizes=batch["image_sizes"])
    with torch.no_grad():
        with foveate.compress(model, foveate.Downsample(keep=0.5)) as handle:
            found = tiny.marked(model, batch).pooler_output
            shapes = [
                (1, len({i // width for i in kept}), len({i % width for i in kept}))
                for kept, (_, width) in zip(
                    handle.report().visits[0].kept, handle.report().visits[0].shapes, strict=True
                )
            ]
        resize = list_families()[family].tower.resize
        assert resize is not None
        _, small = resize(model.config, (), given, shapes)
        assert small["pixel_values"].shape[-1] < batch["pixel_values"].shape[-1]
        for image, expected in zip(found, model.get_image_features(**small).pooler_output, strict=True):
            close(image[~image[:, 0].isnan()], expected)


@SINGLE
@pytest.mark.parametrize("method", [Ragged(last=3), foveate.Downsample(keep=0.5), foveate.ToMe()], ids=repr)
def test_flops_of_images_of_several_sizes(family: str, method: Method) -> None:
    """Small images are embedded with their padding, and attention is computed between all of them."""
    count_flops(family, method, tiny.inputs(family, ROWS[family]))


def count_flops(family: str, method: Method, batch: dict[str, Tensor]) -> None:
    model = tiny.model(family, "eager")

    def counted() -> int:
        with torch.no_grad(), tiny.flop_counter() as counter:
            model(**batch)
        rotary = [ops for name, ops in counter.get_flop_counts().items() if name.endswith("rotary_emb")]
        return int(counter.get_total_flops()) - sum(sum(ops.values()) for ops in rotary)

    stock = counted()
    with foveate.compress(model, method) as handle:
        compressed = counted()
        report = handle.report()
    assert stock == sum(report.full_flops.values())
    assert compressed == sum(report.flops.values())


@SINGLE
def test_images_without_sizes(family: str) -> None:
    """All of the pixels, then; the features of all images are one entry."""
    if family == "mistral3":
        pytest.skip("stock Mistral 3 wants sizes")
    model, batch = tiny.model(family), tiny.inputs(family, [[3, (4, 6), 5, (4, 6), 2]])
    with torch.no_grad(), foveate.compress(model, DropBlocks()):
        expected = model(**batch).logits
        close(model(**{name: value for name, value in batch.items() if name != "image_sizes"}).logits, expected)


# -- patches that no token is made of -------------------------------------------------------------------------------------


def left_over(*sizes: tuple[int, int]) -> dict[str, Tensor]:
    """A prompt with images of ``sizes`` in pixels; stock code leaves out the last lines of patches that fill no token."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum((h // tiny.PATCH // 2) * (w // tiny.PATCH // 2) for h, w in sizes)
    ids = torch.tensor([[60, 61, *[tiny.IMAGE_TOKEN["mistral3"]] * tokens, 62, 63, 64]])
    shape = len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes)
    pixels = torch.randn(shape, generator=generator)
    return dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_sizes=torch.tensor(sizes)
    )


LEFT_OVER = (20, 28), (29, 18), (24, 24), (36, 12)  # 5 x 7, 7 x 4, 6 x 6 and 9 x 3 patches


@KINDS
def test_what_fills_no_token_stays_and_is_none(impl: str, method: Ragged) -> None:
    compare("mistral3", impl, method, left_over(*LEFT_OVER))


@pytest.mark.parametrize("method", [Keep(), foveate.FastV(ratio=1.0), foveate.Downsample(keep=1.0)], ids=repr)
def test_images_of_all_sizes_as_in_stock_code(method: Method) -> None:
    model, batch = tiny.model("mistral3"), left_over(*LEFT_OVER)
    stock = tiny.text_logits(model, batch)
    with foveate.compress(model, method):
        assert torch.equal(tiny.text_logits(model, batch), stock)


@pytest.mark.parametrize("method", [Ragged(last=3), foveate.Downsample(keep=0.5), foveate.ToMe()], ids=repr)
def test_flops_of_what_fills_no_token(method: Method) -> None:
    count_flops("mistral3", method, left_over(*LEFT_OVER))


def test_an_image_that_keeps_its_grid_keeps_its_size() -> None:
    """Whatever becomes of the others: a smaller copy of it would be cut to whole tokens first."""
    model, batch = tiny.model("mistral3"), left_over((20, 28), (40, 40))
    given = dict(pixel_values=batch["pixel_values"], image_sizes=batch["image_sizes"])
    resize = list_families()["mistral3"].tower.resize
    assert resize is not None
    _, small = resize(model.config, (), given, [(1, 2, 3), (1, 3, 3)])
    assert small["image_sizes"] == [(20, 28), (24, 24)]
    assert torch.equal(small["pixel_values"][0, :, :20, :28], batch["pixel_values"][0, :, :20, :28])


def test_other_towers_of_llava_are_refused() -> None:
    config = tiny.config("llava")
    vision = dict(model_type="dinov2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    vision |= dict(image_size=24, patch_size=4)
    text = config.text_config
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=2)
    ).eval()
    with pytest.raises(UnsupportedModelError, match=r"'dinov2' vision tower.*clip_vision_model.*pixtral.*siglip"):
        foveate.compress(model, foveate.Stride())


def test_flash_kernels_are_told_where_images_end() -> None:
    """All images of a row in one call, some of their rows without queries."""
    rows, kept = torch.randn(1, 9, 4), torch.tensor([[1, 2, 7, 8]])
    whole, own = torch.tensor([0, 3, 5, 9], dtype=torch.int32), torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))

    def kernel(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        out, ends = [], [kwargs[f"cu_seq_lens_{x}"].tolist() for x in "qk"]
        for a, b, c, d in zip(ends[0], ends[0][1:], ends[1], ends[1][1:]):
            out.append(nn.functional.scaled_dot_product_attention(query[:, :, a:b], key[:, :, c:d], value[:, :, c:d]))
        return torch.cat(out, 2).transpose(1, 2), None

    lengths = {"cu_seq_lens_q": whole, "cu_seq_lens_k": whole, "is_causal": False, "scaling": 8**-0.5}
    dense, _ = kernel(None, q, k, v, None, **lengths)
    reading = Reading(received=True, attending=Attending(rows, kept, own, own.tolist(), False), width=9)
    module = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"))
    out, _ = Probe(lambda: reading).attend(kernel, module, q, k, v, None, dict(lengths))
    close(out[:, kept[0]], dense[:, kept[0]], 1e-6)
    assert out.shape == dense.shape
    assert torch.cat(reading.seen.received, 1).shape == (1, 9)


# -- Ministral 3: queries are scaled by their position --------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaling() -> Any:
    return tiny.build(tiny.config("mistral3", model_type="ministral3"))


def positions(batch: dict[str, Tensor]) -> Tensor:
    """As `generate` counts them; `forward` counts padding, too, which moves what is scaled."""
    return (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("plan", ["stride", "cascade", "renumber", "tome", "fastv", "blocks"])
def test_queries_that_are_scaled_by_position(scaling: Any, plan: str) -> None:
    rows = ROWS["mistral3"]
    batch = tiny.inputs("mistral3", rows)
    options = dict(output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), foveate.compress(scaling, PLANS[plan]):
        together = scaling(**batch, position_ids=positions(batch)).logits
        steps: Any = generate(scaling, batch, **options)
        for i in range(len(rows)):
            alone = tiny.inputs("mistral3", rows, only=i)
            text = ~tiny.visual_mask("mistral3", alone)[0]
            close(together[i][batch["attention_mask"][i].bool()][text], scaling(**alone).logits[0][text])
            one: Any = generate(scaling, alone, **options)
            for a, b in zip(steps.logits, one.logits, strict=True):
                close(a[i], b[0])


def test_scaled_queries_of_a_renumbered_prompt(scaling: Any) -> None:
    """The stock language model on the survivors alone, and one more step of it."""
    batch = tiny.inputs("mistral3", ROWS["mistral3"][1:2])
    visual = tiny.visual_mask("mistral3", batch)[0]
    step = torch.tensor([[20]])
    length = batch["input_ids"].shape[1]
    with (
        torch.no_grad(),
        foveate.compress(scaling, foveate.Stride(ratio=0.5, layers=(0,), positions="renumber")) as handle,
    ):
        out = scaling(**batch)
        kept = handle.report().visits[0].kept
        more = dict(input_ids=step, attention_mask=torch.ones(1, length + 1), position_ids=torch.tensor([[length]]))
        after = scaling(**more, past_key_values=out.past_key_values).logits
    stays = ~visual
    places = visual.nonzero().flatten().split([12, 8])
    for here, indices in zip(places, kept, strict=True):
        stays[here[list(indices)]] = True
    with torch.no_grad():
        features = torch.cat(scaling.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output)
        embeds = scaling.get_input_embeddings()(batch["input_ids"])[0].clone()
        embeds[visual] = features
        embeds = torch.cat([embeds[stays], scaling.get_input_embeddings()(step)[0]])
        stock = scaling.lm_head(scaling.model.language_model(inputs_embeds=embeds[None]).last_hidden_state)[0]
    close(out.logits[0][stays & ~visual], stock[:-1][~visual[stays]])
    close(after[0, 0], stock[-1])
