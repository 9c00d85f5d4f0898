"""What holds for every method on every family: one function for each property, which raises where it does not hold.

A test of a method, published or made up, runs them all::

    @pytest.mark.parametrize("check", PROPERTIES)
    @pytest.mark.parametrize("family", tiny.WHOLE)
    def test_of_mine(family: str, check: Property) -> None:
        check(family, Mine(keep=0.5))

A property that says nothing of a method or a family, or that this transformers cannot show, skips the test with the reason.
`keeping_everything_is_stock` is for a method that removes nothing, so it is not among them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import stand_ins
import tiny
import torch
from calls import (
    CHUNKS,
    HANDS_OVER_FEATURES,
    LOGITS,
    ROWS,
    close,
    generate,
    held,
    longest,
    text_of,
    video_rows,
)
from compared import (
    decides_per_token,
    depends_on_text,
    generated,
    prompted,
    ran_by,
    said,
    same,
    sites_of,
    two_words,
    usual,
)
from matrix import kinds_of, refused
from refusals import left_as_it_was
from torch import Tensor

import foveate
from foveate import Method
from foveate.errors import InputError, UnsupportedModelError
from foveate.handle import host_of
from foveate.units import left

Property = Callable[[str, Method], None]

PROPERTIES: list[Property] = []
#: those of them without which nothing else is worth a look
CORE: list[Property] = []
#: those that are a matter of the kinds of a method's sites and signals (`matrix.structure`), whatever it chooses there
BY_KINDS: list[Property] = []


def always(check: Property) -> Property:
    """Make a function one of `PROPERTIES`: it is not asked of a family that refuses a kind of site of the method."""

    def asked(family: str, method: Method) -> None:
        if reason := refused(family, kinds_of(method)):
            pytest.skip(reason)
        check(family, method)

    asked.__name__, asked.__doc__ = check.__name__, check.__doc__
    PROPERTIES.append(asked)
    return asked


# -- a batch is its rows ------------------------------------------------------------------------------------------------


@always
def a_batch_is_its_rows(family: str, method: Method) -> None:
    """Ragged prompts, one image, several, none, text before and after; padded on either side."""
    model, rows, right = tiny.model(family), ROWS[family], tiny.inputs(family, ROWS[family], padding_side="right")
    alone = [tiny.inputs(family, rows, only=i) for i in range(len(rows))]
    with torch.no_grad(), foveate.compress(model, method):
        expected = torch.cat([model(**row).logits[text_of(family, row)] for row in alone])
        close(model(**right).logits[text_of(family, right)], expected)
    close(usual(family, method).prompts[0], expected)


@always
def a_video_beside_an_image_is_what_it_is_alone(family: str, method: Method) -> None:
    """Frames of videos, and an image in the same batch where stock code takes both."""
    if family not in tiny.VIDEO:
        pytest.skip("this family takes no videos")
    model, rows = tiny.model(family), video_rows(family)
    batch = tiny.inputs(family, rows)
    with torch.no_grad(), foveate.compress(model, method):
        text, together = text_of(family, batch), model(**batch).logits
        for i in range(len(rows)):
            alone = tiny.inputs(family, rows, only=i)
            close(together[i][text[i]], model(**alone).logits[0][text_of(family, alone)[0]])


@always
def generation_of_a_batch_is_that_of_its_rows(family: str, method: Method) -> None:
    """The same words with the same logits, step by step."""
    model, rows = tiny.model(family), ROWS[family]
    together = usual(family, method)
    with torch.no_grad(), foveate.compress(model, method):
        for i in range(len(rows)):
            alone = generate(model, tiny.inputs(family, rows, only=i), **LOGITS)
            assert torch.equal(together.ids[i, -4:], alone.sequences[0, -4:])
            for step in range(4):
                close(together.logits[step][i], alone.logits[step][0])


@always
def beams_of_a_batch_are_those_of_its_rows(family: str, method: Method) -> None:
    """Beam search repeats and reorders what the cache holds."""
    if family in tiny.GROUPED and not HANDS_OVER_FEATURES:
        pytest.skip("this transformers repeats tiles or patches, not images")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, method):
        together = generate(model, batch, num_beams=3)
        assert torch.equal(together[:, :-4], batch["input_ids"])
        for i in range(len(ROWS[family])):
            alone = generate(model, tiny.inputs(family, ROWS[family], only=i), num_beams=3)
            assert torch.equal(alone[0, -4:], together[i, -4:])


# -- the cache ----------------------------------------------------------------------------------------------------------


@always
def a_cached_step_is_a_full_forward(family: str, method: Method) -> None:
    """Every generated word has the logits that one forward of the whole text gives it."""
    if depends_on_text(method):
        pytest.skip("a longer prompt has another last token, which chooses other tokens")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    length = batch["input_ids"].shape[1]
    steps = usual(family, method)
    with torch.no_grad(), foveate.compress(model, method):
        full = model(**tiny.longer(family, batch, steps.ids)).logits
    for step in range(4):
        close(full[:, length - 1 + step], steps.logits[step])


@always
def a_prompt_in_chunks_is_the_whole_prompt(family: str, method: Method) -> None:
    """The same logits where each token is decided alone or before the language model; as many tokens where not."""
    if not CHUNKS:
        pytest.skip("this transformers cannot cut a prompt with images into chunks")
    if tiny.looks_ahead(family):
        pytest.skip("a chunk does not see the rest of an image or prefix in stock code; see test_both_ways")
    if family in tiny.tiles.OVIS:
        pytest.skip("stock code loses its indicators in chunks")
    exact = decides_per_token(method) and not depends_on_text(method)
    model, batch, whole = tiny.model(family), tiny.inputs(family, ROWS[family]), usual(family, method)
    with torch.no_grad(), foveate.compress(model, method):
        try:
            cut = generate(model, batch, prefill_chunk_size=11, **LOGITS)
        except InputError as error:
            numbered = method.parts()[0].positions != "keep" and "chunked prefill cuts" in str(error)
            ranked = any(part.pooled for part in method.parts()) and "this prompt comes in chunks" in str(error)
            if not (numbered or ranked):
                raise
            return  # numbers of the text behind a cut image, or ranks in it, are not known before all of it is there
    if exact:
        for a, b in zip(whole.logits, cut.logits, strict=True):
            close(a, b)
        return
    # A chunk of which nothing is left still leaves one entry of padding: what counts is what attention may see. (Of that, a
    # sliding entry has some more or less beyond its window.)
    for entry, expected in zip(tiny.entries(cut.past_key_values), whole.held, strict=True):
        assert entry.is_sliding or held(entry, longest(batch)) == expected


@always
def a_later_turn_goes_on_with_the_cache(family: str, method: Method) -> None:
    """Two turns with an image each on one cache equal both in one prompt; one guided by text removes as much."""
    if family == "paligemma":
        pytest.skip("a prefix sees all of itself: two of them are not one; see test_both_ways")
    if tiny.slides(family) and not HANDS_OVER_FEATURES:
        pytest.skip("the masks of this transformers do not fit the sliding layers of a later turn")
    model, image = tiny.model(family), (8, 8) if family in tiny.PACKED else "image"
    both = tiny.inputs(family, [[3, image, 5, image, 4]])
    placeholder = both["input_ids"][0] == tiny.IMAGE_TOKEN[family]
    cut = int(placeholder.nonzero()[int(placeholder.sum()) // 2 - 1]) + (4 if family in tiny.PACKED else 3)
    first = {n: v[:, :cut] for n, v in both.items() if n in ("input_ids", "attention_mask", "mm_token_type_ids")}
    second = {n: v[:, cut:] for n, v in both.items() if n in ("input_ids", "mm_token_type_ids")}
    if "token_type_ids" in both:  # stock code reads them by position, so a turn brings those of the turns before, too
        first["token_type_ids"], second["token_type_ids"] = both["token_type_ids"][:, :cut], both["token_type_ids"]
    if family in tiny.gemma4.FAMILIES:  # and those
        second["mm_token_type_ids"] = both["mm_token_type_ids"]
    first |= tiny.of_images(family, both, slice(0, 1))
    second |= {**tiny.of_images(family, both, slice(1, 2)), "attention_mask": both["attention_mask"]}
    if family in tiny.PACKED:
        second["position_ids"] = tiny.positions(model, both)[..., cut:]
    with torch.no_grad(), foveate.compress(model, method) as handle:
        whole = model(**both)
        expected = [entry.keys.shape[-2] for entry in tiny.entries(whole.past_key_values)]
        cache = model(**first).past_key_values
        out = model(**second, past_key_values=cache)
        if any(site.at != "decode" for site in sites_of(method)):
            assert handle.report().visits, "the second image is reduced too"
    if not depends_on_text(method) and method.parts()[0].positions == "keep":
        close(out.logits[0, -1], whole.logits[0, -1])
    assert [entry.keys.shape[-2] for entry in tiny.entries(cache)] == expected


@always
def rows_of_the_cache_may_be_exchanged(family: str, method: Method) -> None:
    """A step on a cache whose rows were put in another order is that of these rows."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    order = torch.arange(len(ROWS[family])).flip(0)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    found = []
    with torch.no_grad(), foveate.compress(model, method):
        for rows in (slice(None), order):
            cache = model(**batch).past_key_values
            if rows is order:
                cache.reorder_cache(order)
            step = {"input_ids": batch["input_ids"][rows, -1:], "attention_mask": mask[rows]}
            if family in tiny.PACKED:
                step["position_ids"] = torch.full((3, len(order), 1), mask.shape[1])
            found.append(model(**step, past_key_values=cache).logits)
    close(found[1], found[0][order])


# -- other ways to run --------------------------------------------------------------------------------------------------


@always
def training_has_the_loss_of_the_rows(family: str, method: Method) -> None:
    """The loss and the gradients of a batch with labels are finite, and those of its rows together."""
    model, rows = tiny.model(family), ROWS[family]
    batch = tiny.inputs(family, rows, padding_side="right")
    alone = [tiny.inputs(family, rows, only=i) for i in range(len(rows))]
    model.train()
    try:
        with foveate.compress(model, method):
            together = _learned(family, model, [batch])
            each = _learned(family, model, alone)
    finally:
        model.zero_grad()
        model.eval()
    assert math.isfinite(together[0])
    assert together[0] == pytest.approx(each[0], rel=2e-4)
    assert len(together[1]) > 20
    assert together[1].keys() == each[1].keys()
    for name, gradient in together[1].items():
        assert gradient.isfinite().all(), name
        close(gradient, each[1][name], 1e-3)


def _learned(family: str, model: Any, batches: list[dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    """The summed loss of the words of all batches, and its gradients that are not zero, of a mean word."""
    model.zero_grad()
    total, words = 0.0, 0
    for batch in batches:
        labels = batch["input_ids"].masked_fill(~text_of(family, batch), -100)
        count = int((labels[:, 1:] >= 0).sum())
        loss = model(**batch, labels=labels).loss * count
        loss.backward()
        total, words = total + loss.item(), words + count
    gradients = {name: p.grad / words for name, p in model.named_parameters() if p.grad is not None}
    return total, {name: gradient.clone() for name, gradient in gradients.items() if bool(gradient.any())}


@always
def eager_attention_agrees(family: str, method: Method) -> None:
    """It says what sdpa says: of a batch, of a row without padding, and while generating."""
    batch, lone = tiny.inputs(family, ROWS[family]), tiny.inputs(family, ROWS[family], only=0)
    with foveate.compress(tiny.model(family, "eager"), method):
        same(said(family, tiny.model(family, "eager"), batch, lone), usual(family, method))


@always
def flash_attention_agrees(family: str, method: Method) -> None:
    """A stand-in for the kernel does, too; it cannot weigh merged tokens, nor hide pairs of tokens."""
    batch, lone = tiny.inputs(family, ROWS[family]), tiny.inputs(family, ROWS[family], only=0)
    model = stand_ins.with_flash(family)
    weighs = any(part.proportional_attention for part in method.parts())
    sees = any(site.action == "sight" for site in sites_of(method))
    with stand_ins.flash_attention(), foveate.compress(model, method):
        if not (weighs or sees):
            same(said(family, model, batch, lone), usual(family, method))
            return
        sentence = "flash_attention_2 cannot" if weighs else "flash attention takes no mask of pairs"
        with pytest.raises(UnsupportedModelError, match=sentence):
            model(**batch)


@always
def flex_attention_agrees(family: str, method: Method) -> None:
    """And the uncompiled one does, in a prompt and with a cache."""
    if family not in stand_ins.FLEX:
        pytest.skip("stock code has no flex attention here, or this family takes long")
    if any(part.proportional_attention and part.cut is not None for part in method.parts()):
        pytest.skip(
            "images keep different counts, so there is a mask, to which flex attention cannot add sizes: it is refused"
        )
    batch, model, expected = tiny.inputs(family, ROWS[family]), stand_ins.with_flex(family), usual(family, method)
    with torch.no_grad(), stand_ins.uncompiled(), foveate.compress(model, method):
        out = two_words(model, batch)
    for ours, reference in zip(out.logits, expected.logits):
        close(ours, reference)


@always
def half_precision_stays_half(family: str, method: Method) -> None:
    """In bfloat16 and float16 numbers stay numbers of that type."""
    for dtype in (torch.bfloat16, torch.float16):
        model, batch = _half(family, dtype), tiny.inputs(family, ROWS[family])
        batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        with torch.no_grad(), foveate.compress(model, method):
            out = generate(model, batch, **LOGITS)
        assert all(not logits.isnan().any() for logits in out.logits)
        assert {entry.keys.dtype for entry in tiny.entries(out.past_key_values)} == {dtype}


@cache
def _half(family: str, dtype: torch.dtype) -> Any:
    return tiny.model(family, fresh=True).to(dtype)


# -- what the caller sees -----------------------------------------------------------------------------------------------


@always
def outer_shapes_are_stock(family: str, method: Method) -> None:
    """Logits, hidden states and the length of the cache are those of the whole sequence."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    stock = _shapes(family)
    with torch.no_grad(), foveate.compress(model, method):
        out = model(**batch, output_hidden_states=True)
    assert not out.logits.isnan().any()
    assert (out.logits.shape, out.past_key_values.get_seq_length()) == stock[:2]
    assert (out.hidden_states[-1].shape, len(out.hidden_states)) == stock[2:]


@cache
def _shapes(family: str) -> tuple[Any, ...]:
    with torch.no_grad():
        out = tiny.model(family)(**tiny.inputs(family, ROWS[family]), output_hidden_states=True)
    states = out.hidden_states
    return out.logits.shape, out.past_key_values.get_seq_length(), states[-1].shape, len(states)


@always
def text_alone_is_stock(family: str, method: Method) -> None:
    """A prompt without an image is answered to the bit as without the method, also after one with images."""
    model, batch = tiny.model(family), tiny.inputs(family, [[7], [4]])
    with torch.no_grad():
        logits, ids = tiny.text_logits(model, batch), generate(model, batch)
        with foveate.compress(model, method):
            assert torch.equal(tiny.text_logits(model, batch), logits)
            tiny.text_logits(model, tiny.inputs(family, ROWS[family]))
            assert torch.equal(tiny.text_logits(model, batch), logits)
            assert torch.equal(generate(model, batch), ids)


@always
def removal_leaves_nothing(family: str, method: Method) -> None:
    """No hook, attribute or config, and logits to the bit; also after errors in the middle of a forward."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with left_as_it_was(model, batch):
        handle = foveate.compress(model, method)
        logits = tiny.text_logits(model, batch)
        for module in (tiny.blocks(model)[2], tiny.lm(model).layers[3]):
            broken = module.register_forward_pre_hook(_stop)
            with pytest.raises(KeyboardInterrupt, match="stop"):
                tiny.text_logits(model, batch)
            broken.remove()
        assert torch.equal(tiny.text_logits(model, batch), logits)
        handle.remove()
        handle.remove()  # does nothing


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt("stop")


def keeping_everything_is_stock(family: str, method: Method) -> None:
    """Logits and generated ids are the stock model's to the bit, whatever the kernel."""
    for impl in ("sdpa", "eager"):
        model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
        with torch.no_grad():
            logits, ids = model(**batch).logits, generate(model, batch)
            with foveate.compress(model, method):
                assert torch.equal(model(**batch).logits, logits)
                assert torch.equal(generate(model, batch), ids)


# -- the report ---------------------------------------------------------------------------------------------------------


@always
def the_report_counts_what_ran(family: str, method: Method) -> None:
    """FLOPs by formula are those counted on the run, bytes and lengths those of the cache, tokens those that survived; what a
    unit of `keep` counts is as much as the sites promise."""
    _skip_what_is_by_hand(method)
    model, batch, stock = tiny.model(family), tiny.inputs(family, ROWS[family]), prompted(family)
    with foveate.compress(model, method) as handle:
        ran = ran_by(lambda: model(**batch))
        report = handle.report()
    assert (sum(report.full_flops.values()), sum(report.flops.values())) == (stock.flops, ran.flops)
    assert (report.full_kv_bytes, report.kv_bytes) == (stock.bytes, ran.bytes)
    assert report.kv_lengths == ran.lengths
    assert report.full_layer_tokens == (batch["input_ids"].shape[1],) * tiny.LAYERS
    assert report.visual_tokens == int(tiny.visual_mask(family, batch).sum())
    assert {visit.method for visit in report.visits} <= {part.name() for part in method.parts()}
    for visit in report.visits:
        assert visit.after == tuple(map(len, visit.kept))
        assert all(len(set(kept)) == len(kept) for kept in visit.kept)
        assert all(0 <= i < h * w for kept, (h, w) in zip(visit.kept, visit.shapes) for i in kept)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["flops"] == report.flops
    assert "visual tokens" in str(report)
    _keeps_its_promise(model, method, report)


@always
def the_report_counts_what_is_generated(family: str, method: Method) -> None:
    """So are they of a step with the cache."""
    _skip_what_is_by_hand(method)
    model, batch, stock = tiny.model(family), tiny.inputs(family, ROWS[family]), generated(family)
    with foveate.compress(model, method) as handle:
        ran = ran_by(lambda: two_words(model, batch))
        report = handle.report()
    assert sum(report.full_flops.values()) == pytest.approx(stock.flops, rel=0.01)
    assert sum(report.flops.values()) == pytest.approx(ran.flops, rel=0.01)
    assert (report.full_kv_bytes, report.kv_bytes) == (stock.bytes, ran.bytes)
    assert report.kv_lengths == ran.lengths
    assert report.decode_steps == 1
    _keeps_its_promise(model, method, report)


def _skip_what_is_by_hand(method: Method) -> None:
    if any(type(part).attach is not Method.attach for part in method.parts()):
        pytest.skip("the report does not count what a method does by hand")


def _keeps_its_promise(model: Any, method: Method, report: foveate.Report) -> None:
    """What is left of each unit that a part with a `keep` counts is within a token of every image and cut; where nothing is
    removed, all of it is left."""
    host, parts = host_of(model), method.parts()
    assert all(0 <= share <= 1 for share in report.shares.values()) or any(
        s.action == "append" for s in sites_of(method)
    )
    if all(part.unit == "none" for part in parts):
        assert set(report.shares.values()) == {1.0}
    sites = method.resolve(host).sites(host)
    images = max((len(visit.before) for visit in report.visits), default=1)
    side = max((max(shape) for visit in report.visits for shape in visit.shapes), default=0)
    rectangles = any(isinstance(part, (foveate.OIM, foveate.Downsample)) for part in parts)
    token = images * (side if rectangles else 1) / report.visual_tokens
    units = {part.unit for part in parts if part.keep is not None} & report.shares.keys()
    if any(site.reuse is not None for site in sites):
        units -= {"cache"}  # which holds the keys of a batch that has a row without an image
    for unit in units:
        assert report.shares[unit] == pytest.approx(left(unit, sites, host), abs=token * max(1, len(sites))), unit


CORE += [a_batch_is_its_rows, a_cached_step_is_a_full_forward, the_report_counts_what_ran]
BY_KINDS += [
    generation_of_a_batch_is_that_of_its_rows,
    beams_of_a_batch_are_those_of_its_rows,
    a_later_turn_goes_on_with_the_cache,
    rows_of_the_cache_may_be_exchanged,
    eager_attention_agrees,
    flash_attention_agrees,
    flex_attention_agrees,
    outer_shapes_are_stock,
    text_alone_is_stock,
    removal_leaves_nothing,
    the_report_counts_what_is_generated,
]


def turn(check: Property, number: int = 0) -> str:
    """The one of `tiny.WHOLE` that a property beside `CORE` is asked of in `make test`.

    By turns, over properties and over methods, which are numbered; but for what says something of one of the two alone.
    """
    alone = {flex_attention_agrees: stand_ins.FLEX, a_video_beside_an_image_is_what_it_is_alone: tiny.VIDEO}
    families = [family for family in tiny.WHOLE if family in alone.get(check, tiny.WHOLE)]
    return families[(PROPERTIES.index(check) + number) % len(families)]
