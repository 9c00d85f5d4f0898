"""Signals of what a call is given: the pixels of its images, and its text alone; against plain torch, in a batch as alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, counted, text_of, video_rows
from contract import PROPERTIES, Property
from refusals import refused
from torch import Tensor

import foveate
from foveate import Host, Method, Reduction, Signal, Site, Tokens
from foveate.errors import InputError, UnsupportedSiteError
from foveate.runtime.images import Images


@dataclass(frozen=True)
class Hear(Method):
    """Keeps everything, or half before the decoder's layer 1, and notes what it is told."""

    places: tuple[Site, ...] = ()
    heard: list[Tokens] = field(default_factory=list, compare=False)

    def sites(self, host: Host) -> Sequence[Site]:
        return self.places

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.signals:
            self.heard.append(tokens)
        if site.at == "pixels":
            keep = torch.arange(len(tokens), device=tokens.index.device)
            return Reduction(keep, tokens.counts, shape=tokens.spans.shape)
        return tokens.keep_best(-(tokens.index % 3).float(), site)


def hear(model: Any, batch: dict[str, Tensor], *places: Site) -> list[Tokens]:
    listen = Hear(places)
    with torch.no_grad(), foveate.compress(model, listen):
        model(**batch)
    return listen.heard


# -- the text alone -----------------------------------------------------------------------------------------------------

ENTRY, LATER = Site.entry(signals=("text_pass",)), Site.decoder(2, signals=("text_pass", "text"))


def passed(model: Any, embeds: Tensor) -> Tensor:
    """``(T, C)`` what the language model makes of a prompt."""
    with torch.no_grad():
        states: Tensor = tiny.lm(model)(inputs_embeds=embeds[None]).last_hidden_state[0]
    return states


def texts(family: str, model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """``(T, C)`` embeddings of the text of each row."""
    given: list[Tensor] = []
    lm = tiny.lm(model)
    listen = lm.register_forward_pre_hook(lambda _, args, kw: given.append(kw["inputs_embeds"]), with_kwargs=True)
    with torch.no_grad():
        model(**batch)
    listen.remove()
    return [row[text] for row, text in zip(given[0], text_of(family, batch), strict=True)]


@pytest.mark.parametrize("family", tiny.STRUCTURES)
def test_text_pass_is_that_of_the_text_alone(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    rows = texts(family, model, batch)
    expected = torch.cat([passed(model, row) for row in rows])
    for tokens in hear(model, batch, ENTRY, Site.decoder(1, 0.5), LATER):
        assert tokens.text_counts == tuple(map(len, rows))
        close(tokens.text_pass, expected)


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_it_runs_once_where_somebody_asks(family: str, impl: str) -> None:
    model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
    ran: list[int] = []
    listen = tiny.lm(model).layers[0].register_forward_hook(lambda *_: ran.append(1))
    for places, runs in (((ENTRY, LATER), 2), ((Site.entry(signals=("text",)),), 1)):
        ran.clear()
        with foveate.compress(model, Hear(places)) as handle:
            flops = counted(impl, lambda: model(**batch))
            assert sum(handle.report().flops.values()) == flops
        assert len(ran) == runs
    listen.remove()


def test_text_pass_of_samples_of_one_row_and_of_a_later_turn() -> None:
    model, rows = tiny.model("llava"), [[3, "image", 5], [2, "image", 4, "image", 3]]
    alone = [tiny.inputs("llava", [row], seed=i) for i, row in enumerate(rows)]
    row = {"pixel_values": torch.cat([batch["pixel_values"] for batch in alone])}
    row["input_ids"] = torch.cat([batch["input_ids"] for batch in alone], 1)
    row["position_ids"] = torch.cat([torch.arange(batch["input_ids"].shape[1]) for batch in alone])[None]
    expected = [passed(model, texts("llava", model, batch)[0]) for batch in alone]
    listen = Hear((ENTRY,))
    with torch.no_grad(), foveate.compress(model, listen):
        model(**row, use_cache=False)
        cache = model(**alone[0]).past_key_values
        length = cache.get_seq_length() + alone[1]["input_ids"].shape[1]
        second = alone[1] | {"attention_mask": torch.ones(1, length, dtype=torch.long)}
        model(**second, past_key_values=cache)
    packed, first, later = listen.heard
    close(packed.text_pass, torch.cat(expected))
    close(first.text_pass, expected[0])
    close(later.text_pass, expected[1])


def test_ids_of_the_text() -> None:
    """Those of the text that is there, sample after sample; embeddings have none."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    heard = hear(
        model, batch, Site.entry(signals=("text_ids",)), Site.decoder(1, 0.5), Site.decoder(2, signals=("text_ids",))
    )
    for tokens in heard:
        assert tokens.text_ids.tolist() == batch["input_ids"][text_of("llava", batch)].tolist()
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(InputError, match="brings embeddings in place of them: give input_ids"):
        hear(model, {**batch, "inputs_embeds": embeds}, Site.entry(signals=("text_ids",)))


@pytest.mark.parametrize("family", ["llava", "llava_siglip", "qwen2_5_vl", "internvl"])
def test_what_the_tower_has_put_out(family: str) -> None:
    """At a site of the language model it is what the site at the tower's output has left."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    late, early = Signal("hidden", at="tower"), Signal("hidden")
    (outside,) = hear(model, batch, Site.entry(signals=(late,)))
    (inside,) = hear(model, batch, Site.output(signals=(early,)))
    order = (1000 * inside.segment + inside.index).argsort()  # some towers have one of their own
    close(outside.signal(late), inside.signal(early)[order])


@dataclass(frozen=True)
class Question(Method):
    """The tokens stay that are most like what the language model makes of the question alone."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.entry(0.5, signals=("text_pass",))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        last = torch.tensor(tokens.text_counts).cumsum(0) - 1
        question = tokens.text_pass[last.to(tokens.index.device)][tokens.sample]
        return tokens.keep_best(torch.cosine_similarity(tokens.hidden, question, dim=-1), site)


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_a_method_that_asks_for_it_has_every_property(family: str, check: Property) -> None:
    check(family, Question())


# -- pixels -------------------------------------------------------------------------------------------------------------

SEEN = (
    Site.pixels(signals=("patches",)),
    Site.tower(0, 0.5, signals=("patches",)),
    Site.tower(2, signals=("patches",)),
)


def test_patches_of_a_padded_tower() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    p = model.config.vision_config.patch_size
    cut = [[image[:, y : y + p, x : x + p].flatten() for y in range(0, image.shape[1], p) for x in range(0, image.shape[2], p)]
           for image in batch["pixel_values"]]  # fmt: skip
    for tokens, n in zip(hear(model, batch, *SEEN), (1, 1, 2), strict=True):
        expected = [cut[s][i] for s, part in enumerate(tokens.index.split(tokens.counts)) for i in part.tolist()]
        assert len(tokens) == sum(map(len, cut)) // n
        assert torch.equal(tokens.patches, torch.stack(expected))


@pytest.mark.parametrize("video", [False, True])
def test_patches_of_a_packed_tower(video: bool) -> None:
    family = "qwen2_5_vl"
    batch = tiny.inputs(family, [video_rows(family)[0]] if video else ROWS[family])
    pixels, grids = (batch[f"{name}{'_videos' if video else ''}" if name == "pixel_values" else name] for name in
                     ("pixel_values", "video_grid_thw" if video else "image_grid_thw"))  # fmt: skip
    units = pixels.view(-1, 4 * pixels.shape[1])  # as the processor has them: unit after unit
    sizes = [h * w // 4 for t, h, w in grids.tolist() for _ in range(t)]
    for tokens in hear(tiny.model(family), batch, *SEEN):
        starts = torch.tensor([0, *sizes]).cumsum(0)
        assert torch.equal(tokens.patches, units[starts[tokens.segment] + tokens.index])
        assert tokens.spans.clip == tuple(i for i, (t, _, _) in enumerate(grids.tolist()) for _ in range(t))


PIXELS = ["gemma3", "gemma4", "glm4v", "idefics3", "llava_pixtral", "minicpmv4_6", "mistral3", "ovis2", "qwen3_vl"]


@pytest.mark.parametrize("family", PIXELS)
def test_patches_are_the_pixels_that_a_token_is_made_of(family: str) -> None:
    """Where the first block begins, a token has come of these pixels and of no others: gradients say so."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    batch["pixel_values"] = batch["pixel_values"].clone().requires_grad_()
    listen = Hear((Site.tower(0, signals=("patches",)),))
    with foveate.compress(model, listen):
        model(**batch)
    (tokens,) = listen.heard
    for i in {0, len(tokens) // 3, len(tokens) - 1}:
        seen, said = (
            torch.autograd.grad(x[i].exp().sum(), batch["pixel_values"], retain_graph=True)[0]
            for x in (tokens.hidden, tokens.patches)
        )
        assert torch.equal(seen != 0, said != 0)


def test_patches_of_resized_images_are_theirs() -> None:
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[3, (8, 8), 5]])
    listen = Hear((Site.tower(0, signals=("patches",)),))
    given: list[Tensor] = []
    hook = tiny.tower(model).patch_embed.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad(), foveate.compress(model, foveate.Downsample(keep=0.25) + listen):
        model(**batch)
    hook.remove()
    (tokens,) = listen.heard
    assert len(tokens) == 4
    assert torch.equal(tokens.patches, given[0].view(4, -1)[tokens.index])


def test_a_still_video_keeps_its_first_frame() -> None:
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[3, (2, 4, 8), 5]])
    frames = batch["pixel_values_videos"].view(2, -1, batch["pixel_values_videos"].shape[-1])
    frames[1, 4:] = frames[0, 4:]  # but for one token
    with torch.no_grad(), foveate.compress(model, Changed()) as handle:
        model(**batch)
        assert [visit.after for visit in handle.report().visits] == [(8, 1)]


@dataclass(frozen=True)
class Changed(Method):
    """Before the first vision block, tokens leave whose pixels are those of the frame before."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.tower(0, signals=("patches",))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        order = torch.argsort(tokens.segment * 2**32 + tokens.index)  # windows come one after another
        frames = tokens.patches[order].view(len(tokens.counts), tokens.counts[0], -1)
        same = torch.zeros(frames.shape[:2], dtype=torch.bool)
        same[1:] = (frames[1:] == frames[:-1]).all(-1)
        return tokens.keep_mask(~torch.empty_like(order, dtype=torch.bool).index_copy(0, order, same.flatten()))


def test_what_cannot_be_had_is_a_sentence() -> None:
    patch = Site.park(0, 0.5, unit="patch", signals=("patches",))
    refused(tiny.model("qwen2_5_vl"), Hear((patch, Site.restore())), UnsupportedSiteError, "they are of whole tokens")
    with foveate.compress(tiny.model("llava"), Hear((patch, Site.restore()))):  # where a token is one patch
        pass
    refused(tiny.model("gemma4"), Hear((ENTRY,)), UnsupportedSiteError, "'per_layer_input' of every token")
    with pytest.raises(UnsupportedSiteError, match="only rows or strips of patches, and images that patches divide"):
        Images([(1, 2, 2)], pixels=torch.zeros(1, 3, 5, 4)).patches(1)
