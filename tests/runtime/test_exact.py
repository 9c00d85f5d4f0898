"""Against independent references: a dropped token is a masked key; a resized image is a smaller image; and so on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, video_rows
from probes.synthetic import DropBlocks, ParkHalf
from torch import Tensor, nn

import foveate
from foveate.ops import select


@pytest.mark.parametrize("layer", [0, 1, 3, 5])
def test_a_dropped_token_is_a_masked_key(family: str, impl: str, layer: int) -> None:
    """Masking the keys of the dropped tokens from that layer on gives the text the same logits."""
    if family in tiny.RECURRENT:
        pytest.skip("a masked token still enters the state: see test_recurrent")
    model, batch = tiny.model(family, impl, fresh=True), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, foveate.Random(layer=layer, ratio=0.4)) as handle:
        reduced = model(**batch).logits
        visit = handle.report().visits[0]
    visual = tiny.visual_mask(family, batch)
    kept: list[bool] = []
    for indices, (height, width) in zip(visit.kept, visit.shapes, strict=True):
        kept += [i in indices for i in range(height * width)]
    dropped = visual.clone()
    dropped[visual] = ~torch.tensor(kept)

    def hide(module: Any, args: Any, kwargs: Any) -> Any:
        n = batch["input_ids"].shape[1]
        mask = kwargs["attention_mask"]
        if mask is None:
            mask = torch.ones(n, n).tril().bool()[None, None]
        lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return args, {
            **kwargs,
            "attention_mask": mask.expand(len(visual), -1, -1, -1).masked_fill(dropped[:, None, None], lowest),
        }

    for block in tiny.lm(model).layers[layer:]:
        block.register_forward_pre_hook(hide, with_kwargs=True)
    with torch.no_grad():
        masked = model(**batch).logits
    text = ~visual & batch["attention_mask"].bool()
    close(reduced[text], masked[text])


@pytest.mark.parametrize("keep", [0.25, 0.5])
@pytest.mark.parametrize("family", tiny.PACKED)
def test_native_downsample_is_a_smaller_image(family: str, keep: float) -> None:
    """A resized image under native positions gives what stock gives for the smaller image and its shorter prompt."""
    from foveate.models import list_families

    model = tiny.model(family)
    rows = [[3, (8, 16), 5, (12, 4), 2]]
    batch = tiny.inputs(family, rows)
    with torch.no_grad(), foveate.compress(model, foveate.Downsample(keep=keep, positions="native")) as handle:
        ours = model(**batch).logits[0, -1]
        step = model.generate(
            **batch, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        small_grid = [(1, *shape) for shape in _grids(handle.report().visits[0])]
    args = (batch["pixel_values"], batch["image_grid_thw"])
    resize = list_families()[family].tower.resize
    assert resize is not None
    (pixels, grid), _ = resize(model.config, args, {}, small_grid)
    sizes = [h * w // 4 for _, h, w in batch["image_grid_thw"].tolist()]
    small = _shortened(batch, sizes, [h * w for _, h, w in small_grid], tiny.IMAGE_TOKEN[family])
    small |= {"pixel_values": pixels, "image_grid_thw": grid}
    with torch.no_grad():
        stock = model(**small).logits[0, -1]
        steps = model.generate(
            **small, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    close(ours, stock)
    for a, b in zip(step.logits, steps.logits, strict=True):
        close(a, b)


def _grids(visit: Any) -> list[tuple[int, int]]:
    grids = []
    for kept, (_, width) in zip(visit.kept, visit.shapes, strict=True):
        rows = len({i // width for i in kept})
        grids.append((rows, len(kept) // rows))
    return grids


def _shortened(batch: Any, sizes: list[int], new: list[int], token: int) -> dict[str, Tensor]:
    """A prompt whose runs of ``sizes`` placeholders have become runs of ``new``."""
    keep: list[int] = []
    ids, i = batch["input_ids"][0].tolist(), 0
    for old, now in zip(sizes, new, strict=True):
        while ids[i] != token:
            keep.append(i)
            i += 1
        keep += range(i, i + now)
        i += old
    keep += range(i, len(ids))
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {name: batch[name][:, keep] for name in names if name in batch}


@pytest.mark.parametrize("layer", [0, 2])
def test_renumbering_is_a_shorter_prompt(layer: int) -> None:
    """LLaVA, 1-D positions: dropping before layer 0 and renumbering is stock's language model on the survivors alone."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][1:2])
    method = foveate.Stride(ratio=0.5, layers=(0,), positions="renumber")
    visual = tiny.visual_mask("llava", batch)[0]
    stays = ~visual
    places = visual.nonzero().flatten()
    n = len(places) // 2
    stays[places[select.stride((n, n), (n // 2, n // 2))]] = True
    with torch.no_grad(), foveate.compress(model, method):
        ours = model(**batch).logits[0][stays & ~visual]
    with torch.no_grad():
        features = torch.cat(list(model.get_image_features(batch["pixel_values"]).pooler_output))
        embeds = model.get_input_embeddings()(batch["input_ids"])[0].clone()
        embeds[visual] = features
        hidden = model.model.language_model(inputs_embeds=embeds[stays][None]).last_hidden_state
        stock = model.lm_head(hidden)[0][~visual[stays]]
    close(ours, stock)


def _llava_tower(model: Any, pixels: Tensor, keep: Tensor, first: int, last: int | None, mid: bool) -> Tensor:
    """CLIP by hand: from block ``first`` (after its attention if ``mid``) the patches ``keep`` only; all from ``last`` on."""
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    rows = torch.cat([torch.zeros(1, dtype=torch.long), keep + 1])
    parked = hidden
    for i, block in enumerate(tower.encoder.layers[:-1]):
        if i == last:
            full = parked.clone()
            full[:, rows] = hidden
            hidden = full
        if i == first and not mid:
            parked, hidden = hidden, hidden[:, rows]
        attended = hidden + block.self_attn(block.layer_norm1(hidden))[0]
        if i == first and mid:
            parked, attended = attended, attended[:, rows]
        hidden = attended + block.mlp(block.layer_norm2(attended))
    return hidden[:, 1:]


@pytest.mark.parametrize("mid", [False, True])
def test_parking_in_a_padded_tower(impl: str, mid: bool) -> None:
    model, batch = tiny.model("llava", impl), tiny.inputs("llava", [[3, "image", 4, "image"]])
    n = tiny.llava.SIDE**2
    with torch.no_grad(), foveate.compress(model, ParkHalf(mid=mid)):
        ours = torch.cat(list(model.get_image_features(batch["pixel_values"]).pooler_output))
    with torch.no_grad():
        keep = select.stride((n,), (n // 2,))
        features = _llava_tower(model, batch["pixel_values"], keep, 1, 3, mid)
        close(ours, model.model.multi_modal_projector(features).flatten(0, 1))


def _qwen_tower(model: Any, batch: Any, keep: Tensor, first: int, last: int | None, mid: bool) -> list[Tensor]:
    """Qwen's tower by hand, one image after the other, attention segment by attention segment: what the merger makes of the
    last block, then what the deepstack mergers make of others."""
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

    tower, grid = tiny.tower(model), batch["image_grid_thw"]
    hidden = tower.patch_embed(batch["pixel_values"])
    if hasattr(tower, "pos_embed"):
        hidden = hidden + _learned(tower.pos_embed.weight, grid.tolist(), mode="bilinear", align_corners=True)
    if hasattr(tower, "post_conv_layernorm"):
        table = tower.embeddings.position_embedding.weight
        hidden = tower.post_conv_layernorm(hidden) + _learned(table, grid.tolist(), mode="bicubic")
    ids = get_vision_position_ids(grid, 2)
    segment = torch.bucketize(torch.arange(len(hidden)), get_vision_cu_seqlens(grid)[1:], right=True)
    segments = [segment] * len(tower.blocks)
    order = torch.arange(len(hidden) // 4)
    if hasattr(tower, "fullatt_block_indexes"):
        order, cu = get_vision_window_index(
            grid, spatial_merge_size=2, window_size=tower.window_size, patch_size=tower.patch_size
        )
        window = torch.bucketize(torch.arange(len(hidden)), cu[1:], right=True)
        segments = [segment if i in tower.fullatt_block_indexes else window for i in range(len(tower.blocks))]
    rows = (order[:, None] * 4 + torch.arange(4)).flatten()
    hidden, ids = hidden[rows], ids[rows]
    present = torch.arange(len(hidden))
    parked = hidden
    outputs: list[Tensor] = []
    for i, block in enumerate(tower.blocks):
        if i == last:
            full = parked.clone()
            full[keep] = hidden
            hidden, present = full, torch.arange(len(full))
        if i == first and not mid:
            parked, hidden, present = hidden, hidden[keep], keep
        attended = hidden + _attend(
            block.attn, block.norm1(hidden), _rotary(tower, hidden, ids[present]), segments[i][present]
        )
        if i == first and mid:
            parked, attended, present = attended, attended[keep], keep
        hidden = attended + block.mlp(block.norm2(attended))
        for tap, at in zip(getattr(tower, "deepstack_merger_list", []), getattr(tower, "deepstack_visual_indexes", [])):
            if at == i and last is None:
                outputs.append(tap(hidden))
    if hasattr(tower, "downsample"):  # a convolution over the four patches of a token
        joined = tower.post_layernorm(hidden).view(-1, 2, 2, hidden.shape[-1])
        weight = tower.downsample.weight
        hidden = torch.einsum("nyxc,dcyx->nd", joined, weight) + tower.downsample.bias
    outputs = [tower.merger(hidden), *outputs]
    for k, merged in enumerate(outputs):
        if len(merged) < len(order):
            outputs[k] = merged.new_full((len(order), merged.shape[-1]), torch.nan)
            outputs[k][keep[::4] // 4] = merged
        outputs[k] = outputs[k][torch.argsort(order)]
    return outputs


def _learned(table: Tensor, grid: list[list[int]], **how: Any) -> Tensor:
    """A square grid of learned embeddings stretched to each image, its patches 2x2 block after block."""
    side = math.isqrt(len(table))
    square = table.T.reshape(1, -1, side, side)
    rows = []
    for t, h, w in grid:
        image = nn.functional.interpolate(square, (h, w), **how)[0]
        blocks = image.view(-1, h // 2, 2, w // 2, 2).permute(1, 3, 2, 4, 0)
        rows.append(blocks.reshape(h * w, -1).repeat(t, 1))
    return torch.cat(rows)


def _rotary(tower: Any, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    try:
        cos, sin = tower.rotary_pos_emb(hidden, ids)
    except TypeError:  # before 5.18 the module gives angles
        angles = tower.rotary_pos_emb(ids)
        both = torch.cat([angles, angles], dim=-1)
        cos, sin = both.cos(), both.sin()
    return cos, sin


def _attend(attention: Any, x: Tensor, rotary: tuple[Tensor, Tensor], segment: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        a, b = t.chunk(2, -1)
        return t * rotary[0][:, None] + torch.cat([-b, a], -1) * rotary[1][:, None]

    fused = (
        attention.qkv(x)
        if hasattr(attention, "qkv")
        else torch.cat([f(x) for f in (attention.q, attention.k, attention.v)], -1)
    )
    q, k, v = fused.view(len(x), 3, attention.num_heads, -1).unbind(1)
    logits = torch.einsum("qhd,khd->hqk", turn(q), turn(k)) * attention.scaling
    weights = logits.masked_fill(segment[:, None] != segment, -torch.inf).softmax(-1)
    return attention.proj(torch.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1))


@pytest.mark.parametrize("mid", [False, True])
@pytest.mark.parametrize("name", tiny.PACKED)
def test_parking_in_a_packed_tower(name: str, impl: str, mid: bool) -> None:
    model, batch = tiny.model(name, impl), tiny.inputs(name, [[3, (8, 8), 4, (4, 12)]])
    with torch.no_grad(), foveate.compress(model, ParkHalf(mid=mid)):
        ours = torch.cat(list(model.get_image_features(batch["pixel_values"], batch["image_grid_thw"]).pooler_output))
    with torch.no_grad():
        close(ours, _qwen_tower(model, batch, select.stride((64, 48), (32, 24)), 1, 3, mid)[0])


@pytest.mark.parametrize("name", tiny.PACKED)
def test_dropping_in_a_packed_tower(name: str, impl: str) -> None:
    """Features are those of the survivors alone; holes are NaN and stand where the dropped tokens stood."""
    model, batch = tiny.model(name, impl), tiny.inputs(name, [[3, (8, 8), 4, (4, 12)]])
    with torch.no_grad(), foveate.compress(model, DropBlocks(block=2)) as handle:
        output = tiny.marked(model, batch)
        kept = handle.report().visits[0].kept
    units = torch.cat([torch.tensor(kept[0]), torch.tensor(kept[1]) + 16])
    with torch.no_grad():
        order = torch.arange(28)
        if name in tiny.packed.WINDOWS:
            from transformers.vision_utils import get_vision_window_index

            order, _ = get_vision_window_index(
                batch["image_grid_thw"], spatial_merge_size=2, window_size=16, patch_size=4
            )
        place = torch.argsort(order)[units].sort().values  # where the blocks see them
        rows = (place[:, None] * 4 + torch.arange(4)).flatten()
        references = _qwen_tower(model, batch, rows, 2, None, False)
    # A list per image; before 5.23 one tensor for all of them where features are added to decoder layers.
    others = [
        part if isinstance(part, Tensor) else torch.cat(part) for part in getattr(output, "deepstack_features", [])
    ]
    assert len(references) == 1 + len(others)
    for ours, reference in zip([torch.cat(list(output.pooler_output)), *others], references, strict=True):
        hole = reference[:, 0].isnan()
        assert torch.equal(ours[:, 0].isnan(), hole)
        close(ours[~hole], reference[~hole])


@pytest.mark.parametrize("method", [DropBlocks(block=1), DropBlocks(block=2) + foveate.Stride(layers=(1,))], ids=repr)
@pytest.mark.parametrize("name", tiny.packed.DEEPSTACK)
def test_features_added_in_the_decoder_are_those_of_the_survivors(name: str, impl: str, method: foveate.Method) -> None:
    """The stock language model on the tower's features of all modalities, with keys masked where tokens have left."""
    model, batch = tiny.model(name, impl, fresh=True), tiny.inputs(name, video_rows(name))
    visual = tiny.visual_mask(name, batch)
    lm, kinds = tiny.lm(model), {"image": tiny.IMAGE_TOKEN[name], "video": tiny.VIDEO_TOKEN}
    given: dict[str, Any] = {}

    def note(module: Any, args: Any, kwargs: Any) -> None:
        given.update(kwargs)

    hook = lm.register_forward_pre_hook(note, with_kwargs=True)  # before ours: with the holes, and what is added
    with torch.no_grad(), foveate.compress(model, method) as handle:
        reduced = model(**batch).logits
        report = handle.report()
    hook.remove()
    with torch.no_grad(), foveate.compress(model, method.parts()[0]):
        features = {
            "image": tiny.marked(model, batch),
            "video": tiny.marked(model, batch, "get_video_features"),
        }
    embeds = lm.embed_tokens(batch["input_ids"]).detach().clone()
    added = torch.zeros(3, int(visual.sum()), embeds.shape[-1])
    for kind, token in kinds.items():
        here = batch["input_ids"] == token
        embeds[here] = torch.cat(list(features[kind].pooler_output)).nan_to_num()
        for k, part in enumerate(features[kind].deepstack_features):
            rows = part if isinstance(part, Tensor) else torch.cat(list(part))
            added[k, here[visual]] = rows.nan_to_num()
    # Which tokens are left from layer 0 on, and from layer 1 on.
    left = [visual.clone(), visual.clone()]
    left[0][visual] = ~given["inputs_embeds"][visual][:, 0].isnan()
    left[1] = left[0].clone()
    if len(method.parts()) > 1:
        flags = []
        for visit in [v for v in report.visits if v.site == "decoder 1"]:
            flags += [i in kept for kept, (h, w) in zip(visit.kept, visit.shapes, strict=True) for i in range(h * w)]
        left[1][visual] = torch.tensor(flags)
    assert int(left[1].sum()) == sum(sum(v.after) for v in report.visits if v.site == report.visits[-1].site)

    for layer, block in enumerate(lm.layers):
        gone = visual & ~left[min(layer, 1)]

        def hide(module: Any, args: Any, kwargs: Any, gone: Tensor = gone) -> Any:
            mask = kwargs["attention_mask"]
            lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask.masked_fill(gone[:, None, None], lowest)}

        block.register_forward_pre_hook(hide, with_kwargs=True)
    arguments = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(added), "inputs_embeds": embeds}
    with torch.no_grad():
        states = lm(**(given | arguments)).last_hidden_state
    text = ~visual & batch["attention_mask"].bool()
    close(reduced[text], model.lm_head(states)[text])


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", tiny.packed.DEEPSTACK)
def test_features_may_be_added_after_the_last_layer(name: str, layers: int) -> None:
    """As many as there are layers, or more: stock code leaves the rest out."""
    model, batch = tiny.build(tiny.config(name, num_hidden_layers=layers)), tiny.inputs(name, video_rows(name))
    logits = tiny.text_logits(model, batch)
    with foveate.compress(model, foveate.Stride(ratio=1.0, layers=(0,))):
        assert torch.equal(tiny.text_logits(model, batch), logits)
    with foveate.compress(model, foveate.Stride(ratio=0.5, layers=(0,))):
        assert tiny.text_logits(model, batch).isfinite().all()
