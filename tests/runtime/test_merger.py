"""A tower that makes one row of four patches between two of its blocks: what leaves before or after, leaves whole. Against the
stock tower run by hand, one image at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, counted, video_rows
from plans import PLANS
from test_cost import total
from test_rows import Ragged
from torch import Tensor, nn
from transformers.utils.import_utils import is_torchvision_available

import foveate
from foveate.errors import InputError, UnsupportedModelError, UnsupportedSiteError
from foveate.method import Host, Method, Site
from foveate.tokens import Reduction, Tokens

FAMILY = "minicpmv4_6"
BATCH = ROWS[FAMILY]
SIDE = 4  # patches of a token


@cache
def model(impl: str = "sdpa", insert: int = tiny.cpm.INSERT, mode: str = "16x") -> Any:
    """The tiny model with its merger after block ``insert``, or without."""
    config = tiny.config(FAMILY)
    config.insert_layer_id = config.vision_config.insert_layer_id = insert
    config.downsample_mode = mode
    return tiny.build(config, impl)


def features(of: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Of each image or slice, what is not missing."""
    with torch.no_grad():
        rows = of.model.get_image_features(batch["pixel_values"], batch["target_sizes"]).pooler_output
    return [part[~part.isnan().any(1)] for part in rows]


def attend(attention: Any, x: Tensor, own: Tensor) -> Tensor:
    """Attention of the rows ``own`` to all of ``x (..., n, C)``."""

    def heads(layer: nn.Module) -> Tensor:
        return layer(x).unflatten(-1, (attention.num_heads, -1)).transpose(-2, -3)  # type: ignore[no-any-return]

    q, k, v = map(heads, (attention.q_proj, attention.k_proj, attention.v_proj))
    weights = (q[..., own, :] @ k.transpose(-1, -2) * attention.scaling).softmax(-1)
    return attention.out_proj((weights @ v).transpose(-2, -3).flatten(-2))  # type: ignore[no-any-return]


def merged(merger: Any, x: Tensor) -> Tensor:
    """Tokens ``(N * 16, C)``, the patches of each in raster order, as ``(N * 4, C)``."""
    windows = x.view(-1, 2, 2, 2, 2, x.shape[-1]).transpose(2, 3).flatten(0, 2).flatten(1, 2)
    windows = windows + attend(merger.self_attn, merger.layer_norm1(windows), torch.arange(4))
    made = merger.linear_2(merger.act(merger.linear_1(merger.pre_norm(windows.flatten(1)))))
    return made + windows.mean(1)  # type: ignore[no-any-return]


def by_hand(of: Any, batch: dict[str, Tensor], kept: list[list[int]], method: Ragged) -> list[Tensor]:
    """What the language model gets of each image; of units that are gone, nothing."""
    tower, insert, out = of.model.vision_tower, of.config.insert_layer_id, []
    patches = [h * w * tiny.PATCH for h, w in batch["target_sizes"].tolist()]
    strips = batch["pixel_values"].split(patches, dim=-1)
    for strip, size, units in zip(strips, batch["target_sizes"], kept, strict=True):
        height, width = (int(n) // SIDE for n in size)
        hidden = tower.embeddings(strip, target_sizes=size[None])[0]
        hidden = hidden.view(height, SIDE, width, SIDE, -1).transpose(1, 2).flatten(0, 3)  # unit after unit

        def rows_of(unit: int, which: list[int]) -> Tensor:
            return (torch.tensor(which, dtype=torch.long)[:, None] * unit + torch.arange(unit)).flatten()

        unit, present, parked = SIDE**2, torch.arange(len(hidden)), hidden
        for i, block in enumerate(tower.encoder.layers):
            if i == method.last:
                hidden, present = parked.index_copy(0, present, hidden), torch.arange(len(parked))
            if i == method.block and not method.mid:
                present = rows_of(unit, units)
                parked, hidden = hidden, hidden[present]
            if i == insert + 1:
                hidden, unit = merged(tower.vit_merger, hidden), unit // 4
                present = torch.arange(len(hidden))
            seen, own = hidden, torch.arange(len(hidden))
            if method.attend and i == method.block:
                seen, own = parked.index_copy(0, present, hidden), present
            hidden = hidden + attend(block.self_attn, block.layer_norm1(seen), own)
            if i == method.block and method.mid:
                present = rows_of(unit, units)
                parked, hidden = hidden, hidden[present]
            hidden = hidden + block.mlp(block.layer_norm2(hidden))
        hidden = merged(tower.vit_merger, hidden) if insert == tiny.BLOCKS - 1 else hidden
        out.append(of.model.merger.mlp[0](tower.post_layernorm(hidden).view(-1, 4 * hidden.shape[-1])))
    return out


METHODS = [
    *((2, Ragged(block)) for block in range(4)),
    *((2, Ragged(block, mid=True)) for block in (0, 2, 3)),
    *((2, Ragged(first, last=last)) for first, last in ((0, 2), (1, 3))),
    *((2, Ragged(1, last=3, mid=mid, attend=not mid)) for mid in (False, True)),
    (3, Ragged(2)),
    (0, Ragged(1)),
    (0, Ragged(2, mid=True)),
    *((0, Ragged(2, last=3, attend=attend)) for attend in (False, True)),
]


@pytest.mark.parametrize(("insert", "method"), METHODS, ids=str)
def test_the_tower_by_hand(insert: int, method: Ragged, impl: str) -> None:
    of, batch = model(impl, insert), tiny.inputs(FAMILY, BATCH)
    with torch.no_grad(), foveate.compress(of, method):
        ours = features(of, batch)
    with torch.no_grad():
        for a, b in zip(ours, by_hand(of, batch, method.kept, method), strict=True):
            close(a, b)
    if method.last is None:
        assert [len(part) for part in ours] == [len(units) for units in method.kept]


@pytest.mark.parametrize(("insert", "method"), METHODS, ids=str)
def test_flops(insert: int, method: Ragged, impl: str) -> None:
    """The merger costs what it is shown."""
    of, batch = model(impl, insert), tiny.inputs(FAMILY, BATCH)
    stock = counted(impl, lambda: of(**batch))
    with foveate.compress(of, method) as handle:
        ours = counted(impl, lambda: of(**batch))
        report = handle.report()
    assert stock == pytest.approx(total(report.full_flops), rel=0.01)
    assert ours == pytest.approx(total(report.flops), rel=0.01)
    assert report.flops["tower"] < report.full_flops["tower"]


@dataclass(frozen=True)
class Hear(Method):
    """Keeps every second token at every site, and notes what it hears."""

    places: tuple[Site, ...] = ()
    heard: list[Tokens] = field(default_factory=list, compare=False)

    def sites(self, host: Host) -> list[Site]:
        return list(self.places)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        self.heard.append(tokens)
        return tokens.keep_mask(tokens.index % 2 == 0)


def test_signals_on_both_sides(impl: str) -> None:
    """16 rows to a token before and 4 after; attention inside each image, which hears what it hears alone."""
    names: Any = ("keys", "values", "received", "residual")
    places = (Site("tower", 3, signals=names), Site("tower", 3, where="mid", signals=names))
    method, alone = (Hear((*places, Site("tower_output", signals=names))) for _ in range(2))
    of, batch = model(impl), tiny.inputs(FAMILY, BATCH)
    made: list[Tensor] = []
    block = of.model.vision_tower.encoder.layers[2].self_attn
    hook = block.k_proj.register_forward_hook(lambda module, args, output: made.append(output[0]))
    with torch.no_grad():
        with foveate.compress(of, method):
            of(**batch)
        hook.remove()
        with foveate.compress(of, alone):
            of(**tiny.inputs(FAMILY, BATCH, only=0))
    for tokens, own, unit in zip(method.heard, alone.heard, (16, 4, 4), strict=True):
        assert tokens.hidden.shape[1] == tokens.residual.shape[1] == unit * block.dim
        assert tokens.keys.shape == (len(tokens), block.num_heads, unit * block.head_dim)
        for name in names:
            close(tokens.signals[name][: len(own)], own.signals[name])
    before = method.heard[0]
    close(before.received.split(before.counts)[1].sum(), torch.tensor(1 / 16))  # of its patches' queries
    height, width = (int(n) // SIDE for n in batch["target_sizes"][0])
    first = made[0][: 16 * height * width].view(height, SIDE, width, SIDE, block.num_heads, -1)
    close(before.keys[: height * width], first.permute(0, 2, 4, 1, 3, 5).flatten(0, 1).flatten(2))


@pytest.mark.skipif(not tiny.cpm.RAGGED, reason="images of one size only, in this transformers")
def test_slices_and_frames_are_spans() -> None:
    of, method = model(), Hear((Site("tower", 1), Site("decoder", 2)))
    with torch.no_grad(), foveate.compress(of, method) as handle:
        of(**tiny.inputs(FAMILY, BATCH))
        assert handle.report().visual_tokens == 16 + 8 + 8 + 12 + 8
        of(**tiny.inputs(FAMILY, video_rows(FAMILY)))
    shapes = [(4, 4), (2, 4), (2, 4), (2, 6), (4, 2)]
    assert [tokens.spans.shape for tokens in method.heard[:2]] == [tuple(shapes)] * 2
    image, video = ((2, 4),), ((2, 2),)
    assert [tokens.spans.shape for tokens in method.heard[2:]] == [image, video * 5, video * 2 + image + video * 3]
    assert len(set(method.heard[-1].spans.clip)) == 6  # a frame reaches the tower as an image


MODES = ["stride", "blocks", "tome", "visionzip", "downsample", "ipcv", "park"]


@pytest.mark.parametrize("plan", MODES)
def test_without_the_merger_a_token_is_four_patches(plan: str) -> None:
    of, rows = model(mode="4x"), [[3, (8, 8), 5], [2, (4, 12), 4, (8, 4), 7], [6]]

    def batch(only: int | None = None) -> dict[str, Tensor]:
        made = tiny.inputs(FAMILY, rows, only=only)
        ids, image = made["input_ids"], tiny.IMAGE_TOKEN[FAMILY]
        wide = [row[mask.bool()].repeat_interleave(torch.where(row == image, 4, 1)[mask.bool()])
                for row, mask in zip(ids, made["attention_mask"], strict=True)]  # fmt: skip
        length = max(map(len, wide))
        pad = torch.nn.functional.pad
        made["input_ids"] = torch.stack([pad(row, (length - len(row), 0)) for row in wide])
        made["attention_mask"] = torch.stack([pad(torch.ones(len(r)), (length - len(r), 0)) for r in wide]).long()
        return made

    stock = tiny.text_logits(of, together := batch())
    with torch.no_grad():
        with foveate.compress(of, foveate.Random(keep=1.0)):
            assert torch.equal(tiny.text_logits(of, together), stock)
        with foveate.compress(of, PLANS[plan]) as handle:
            logits = of(**together).logits
            assert handle.report().visual_tokens == 16 + 12 + 8
            for i in range(len(rows)):
                text = ~tiny.visual_mask(FAMILY, alone := batch(i))[0]
                close(logits[i][together["attention_mask"][i].bool()][text], of(**alone).logits[0][text])


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ((Site("tower", 1, action="park"), Site("tower_output", action="restore")), "restores them at tower_output"),
        ((Site("tower", 3, action="park"), Site("tower_output", action="restore")), "park at tower 4 or later"),
        (
            (Site("tower", 2, where="mid", action="park"), Site("tower_output", action="restore")),
            "at tower 3 at the latest",
        ),
    ],
)
def test_parking_where_the_tower_merges_is_refused(places: tuple[Site, ...], sentence: str) -> None:
    with pytest.raises(UnsupportedSiteError, match=f"hear parks tokens .*block 3 begins.*|{sentence}") as refused:
        foveate.compress(model(), Hear(places))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("stabilise", [0, 1])
def test_single_patches_parked_after_the_merger(impl: str, stabilise: int) -> None:
    """Four of them are a token there."""
    of, batch = model(impl, 0), tiny.inputs(FAMILY, BATCH)
    stock = tiny.text_logits(of, batch)
    with foveate.compress(of, foveate.IPCV(block=2, stabilise=stabilise, ratio=1.0)):
        assert torch.equal(tiny.text_logits(of, batch), stock)
    with torch.no_grad(), foveate.compress(of, foveate.IPCV(block=2, stabilise=stabilise, min_tokens=0)) as handle:
        together = of(**batch).logits
        patches = batch["target_sizes"].prod(1) // 4
        assert handle.report().visits[0].before == tuple(patches.tolist())
        for i in range(len(BATCH)):
            text = ~tiny.visual_mask(FAMILY, alone := tiny.inputs(FAMILY, BATCH, only=i))[0]
            close(together[i][batch["attention_mask"][i].bool()][text], of(**alone).logits[0][text])


def test_what_does_not_fit_is_refused() -> None:
    batch = tiny.inputs(FAMILY, [[3, (8, 8), 5]])
    with torch.no_grad(), foveate.compress(model(), "tome"):
        with pytest.raises(InputError, match=r'asks for downsample_mode="4x".*config says "16x"'):
            model()(**batch, downsample_mode="4x")
        odd = {**batch, "target_sizes": torch.tensor([[2, 32]])}
        with pytest.raises(InputError, match=r"\[\[2, 32\]\] patches do not divide into squares of 4 x 4"):
            model()(**odd)
    config = tiny.config(FAMILY)
    config.merger_times = 2
    with pytest.raises(UnsupportedModelError, match="not 2 times"):
        foveate.compress(tiny.build(config), "stride")


def test_nothing_left_of_some_images() -> None:
    """And of all of them."""
    of, batch = model(), tiny.inputs(FAMILY, BATCH)

    @dataclass(frozen=True)
    class Only(Hear):
        span: int = -1

        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            return tokens.keep_mask(tokens.segment == self.span)

    for block in (0, 3):
        for span in (1, -1):
            with torch.no_grad(), foveate.compress(of, Only((Site("tower", block),), span=span)):
                sizes = (batch["target_sizes"] // SIDE).prod(1).tolist()
                assert [len(part) for part in features(of, batch)] == [n * (i == span) for i, n in enumerate(sizes)]
                assert of(**batch).logits.isfinite().all()


@pytest.mark.skipif(not is_torchvision_available(), reason="the family's own processor needs torchvision")
@pytest.mark.skipif(not tiny.cpm.RAGGED, reason="images of one size only, in this transformers")
def test_with_the_processor_of_the_family() -> None:
    """It makes of images what the tests make of them; a video with slices is spans of both kinds."""
    of, own, names = model(), tiny.cpm.own_processor(tiny.processor(FAMILY).tokenizer), ("pixel_values", "target_sizes")
    noise = torch.Generator().manual_seed(0)
    images = [torch.randint(255, (h * 4, w * 4, 3), generator=noise).byte().numpy() for h, w in ((16, 16), (8, 24))]
    texts = ["word1 <image> word2", "word3 word4 <image> word5 word6"]
    options = dict(padding=True, return_tensors="pt")
    made = own(images=[[image] for image in images], text=texts, **options)
    ours = tiny.processor(FAMILY)(images, texts, padding_side="left", **options)
    assert torch.equal(made["input_ids"], ours["input_ids"])
    for name in names:
        close(made[name].float(), torch.as_tensor(ours[name]).float(), 1e-5)
    film = torch.randint(255, (2, 3, 64, 64), generator=noise).byte()
    prompt = own(videos=[film], text=["word1 <|video_pad|> word2"], do_sample_frames=False, **options)
    with torch.no_grad(), foveate.compress(of, foveate.Stride(keep=0.5) + PLANS["blocks"]) as handle:
        assert of(**prompt).logits.isfinite().all()
        report = handle.report()
    assert report.visual_tokens == int((prompt["input_ids"] == tiny.VIDEO_TOKEN).sum())
    assert [len(visit.before) for visit in report.visits] == [len(prompt["target_sizes_videos"])] * 2
