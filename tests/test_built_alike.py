"""Types that are built like a family of `tiny`, or nearly so, keep what matters most of the contract; left to the matrix."""

from __future__ import annotations

from typing import Literal

import pytest
import tiny
import tiny_alike
import tiny_diffusion
import torch
from calls import ROWS, close, counted, generate, text_of
from compared import depends_on_text
from matrix import kinds_of, refused
from probes.synthetic import EVERYTHING, PROBES, Skips

import foveate
from foveate import Method
from foveate.errors import FoveateError
from foveate.models import family_of, list_families

each = pytest.mark.parametrize("name", tiny_alike.KNOWN)
BOTH = PROBES["tower and decoder"]


def leaves_to_the_matrix(**asked: object) -> bool:
    """All of it: other families have these structures in `make test`."""
    return True


def asked(name: str, method: Method) -> bool:
    """Whether the family that a type is like takes a method, and this one says nothing else."""
    family = family_of(tiny_alike.model(name).config)
    no_pixels = family.tower.resize is None and any(
        site[0] == "pixels" for site in kinds_of(method) if isinstance(site, tuple)
    )
    return not no_pixels and not refused(tiny_alike.ALIKE[name].like, kinds_of(method))


@each
def test_keeping_everything_is_stock(name: str) -> None:
    for impl in ("sdpa", "eager"):
        model, batch = tiny_alike.model(name, impl), tiny_alike.inputs(name, ROWS[tiny_alike.ALIKE[name].like])
        with torch.no_grad():
            logits, ids = model(**batch).logits, generate(model, batch)
            with foveate.compress(model, EVERYTHING):
                assert torch.equal(model(**batch).logits, logits)
                assert torch.equal(generate(model, batch), ids)
            assert torch.equal(model(**batch).logits, logits)


@each
@pytest.mark.parametrize("probe", PROBES)
def test_a_batch_is_its_rows(name: str, probe: str) -> None:
    """Every kind of site and answer, on ragged prompts: an image, several, none."""
    method, like = PROBES[probe], tiny_alike.ALIKE[name].like
    if probe in tiny_alike.ALIKE[name].spared:
        pytest.skip(tiny_alike.ALIKE[name].spared[probe])
    if not asked(name, method):
        pytest.skip("the family that it is like refuses a kind of site")
    model, rows = tiny_alike.model(name), ROWS[like]
    right = tiny_alike.inputs(name, rows, padding_side="right")
    alone = [tiny_alike.inputs(name, rows, only=i) for i in range(len(rows))]
    with torch.no_grad(), foveate.compress(model, method):
        expected = torch.cat([model(**row).logits[text_of(like, row)] for row in alone])
        close(model(**right).logits[text_of(like, right)], expected)


@each
def test_a_cached_step_is_a_full_forward(name: str) -> None:
    like = tiny_alike.ALIKE[name].like
    model, batch = tiny_alike.model(name), tiny_alike.inputs(name, ROWS[like])
    length = batch["input_ids"].shape[1]
    assert not depends_on_text(BOTH)
    with torch.no_grad(), foveate.compress(model, BOTH):
        steps = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        full = model(**tiny.longer(like, batch, steps.sequences)).logits
    for step, logits in enumerate(steps.logits):
        close(full[:, length - 1 + step], logits)


@each
@pytest.mark.parametrize("part", ["ffn", "attention"])
def test_a_part_that_is_skipped_adds_nothing(name: str, part: Literal["ffn", "attention"]) -> None:
    """All visual tokens skip it: against layers whose part is silenced for them by hand."""
    model, rows = tiny_alike.model(name), ROWS[tiny_alike.ALIKE[name].like]
    spec, method, batch = (
        family_of(model.config).decoder,
        Skips(ratio=0.0, part=part),
        tiny_alike.inputs(name, rows),
    )
    if part == "attention" and (spec.recurrent or not spec.attention_norm):
        with pytest.raises(FoveateError, match=r"no token can skip the attention|no norm before their attention"):
            foveate.compress(model, method)
        return
    visual = tiny.visual_mask(tiny_alike.ALIKE[name].like, batch)[..., None]
    path = spec.ffn if part == "ffn" else f"{spec.attention}.{spec.attention_end}"
    hooks = [
        layer.get_submodule(path).register_forward_hook(lambda module, args, output: output.masked_fill(visual, 0.0))
        for layer in tiny.lm(model).layers
    ]
    expected = tiny.text_logits(model, batch)
    for hook in hooks:
        hook.remove()
    with foveate.compress(model, method):
        close(tiny.text_logits(model, batch), expected)


@each
def test_the_report_says_what_is_left_of_an_image(name: str) -> None:
    """A prompt with one image: its span, what is left of it at each site, and the FLOPs of the run."""
    like = tiny_alike.ALIKE[name].like
    model, batch = tiny_alike.model(name, "eager"), tiny_alike.inputs(name, [[3, "image", 5]])
    stock = counted("eager", lambda: model(**batch))
    visual, length = int(tiny.visual_mask(like, batch).sum()), batch["input_ids"].shape[1]
    with foveate.compress(model, BOTH) as handle:
        ran = counted("eager", lambda: model(**batch))
        report = handle.report()
    assert report.visual_tokens == visual
    assert [visit.site.split()[0] for visit in report.visits] == ["tower", *["decoder"] * 3]
    left = [visual, *(sum(visit.after) for visit in report.visits)]
    assert left == sorted(set(left), reverse=True), "fewer at every site"
    assert report.full_layer_tokens == (length,) * tiny.LAYERS
    assert report.layer_tokens[-1] == length - visual + left[-1]
    assert (sum(report.full_flops.values()), sum(report.flops.values())) == (stock, ran)


def test_each_type_has_one_family_and_one_tiny_model() -> None:
    families = [family for family in list_families().values() if not family.tower.unseen]
    types = [name for family in {family.model_type: family for family in families}.values() for name in family.types]
    assert len(types) == len(set(types))
    own = {family.model_type for family in families if family.name in (*tiny.FAMILIES, tiny_diffusion.NAME)}
    assert set(types) - set(tiny_alike.ALIKE) == own
