"""Who sees whom: every probe says what a mask says that is written out by hand, wherever tokens are cached or have left."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import LOGITS, close, generate, text_of
from contract import CORE, PROPERTIES, Property
from probes.synthetic import Paths, Skips
from refusals import At, refused
from torch import Tensor

import foveate
from foveate import Host, Method, RedundancyLens, Site, Tokens
from foveate.answers import Answer, Sight
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.models import family_of
from foveate.runtime.attach import host_of
from foveate.runtime.recurrent import attention_of
from foveate.serving.plan import make_plan

#: whether query ``i`` sees key ``j`` at a layer, of the places of which some are visual; ``rank`` is a token's in its image
Rule = Callable[[int, int, int, list[bool], list[int]], bool]
WINDOW = 3


def hollow(layer: int, i: int, j: int, visual: list[bool], rank: list[int]) -> bool:
    return not (1 <= layer < 4 and visual[i] and visual[j] and abs(i - j) > WINDOW)


def paths(layer: int, i: int, j: int, visual: list[bool], rank: list[int]) -> bool:
    if layer >= 3:
        return not (visual[j] and rank[j] % 2)
    return not (visual[i] and visual[j] and rank[i] % 2 != rank[j] % 2)


def blind(layer: int, i: int, j: int, visual: list[bool], rank: list[int]) -> bool:
    return paths(layer, i, j, visual, rank) and not (visual[j] and not visual[i] and rank[j] % 2)


HOLLOW = RedundancyLens(layers=(), hollow_layers=(1, 2, 3), window=WINDOW)
CASES: dict[str, tuple[Method, Rule]] = {
    "hollow": (HOLLOW, hollow),
    "paths": (Paths(), paths),
    "blind": (Paths(blind=True), blind),
}


def by_hand(family: str, model: Any, batch: dict[str, Tensor], rule: Rule) -> Tensor:
    """Logits of the stock model, each of whose layers gets its own mask and what ``rule`` says of every pair."""
    visual = tiny.visual_mask(family, batch)
    size, length = visual.shape

    def narrow(layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        allowed = torch.zeros(size, 1, length, length, dtype=torch.bool)
        for b in range(size):
            seen, rank = visual[b].tolist(), ranks(family, batch, b)
            for i in range(length):
                for j in range(length):
                    allowed[b, 0, i, j] = i == j or rule(layer, i, j, seen, rank)
        stock = kwargs.get("attention_mask")
        if stock is None:
            stock = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        if model.config._attn_implementation == "eager":
            lowest = torch.finfo(torch.float32).min
            stock = stock if stock.is_floating_point() else torch.zeros(stock.shape).masked_fill(~stock, lowest)
            return {**kwargs, "attention_mask": stock.expand_as(allowed).masked_fill(~allowed, lowest)}
        return {**kwargs, "attention_mask": stock & allowed}

    hooks = [
        module.register_forward_pre_hook(lambda _, args, kwargs, i=i: (args, narrow(i, kwargs)), with_kwargs=True)  # type: ignore[misc]
        for i, module in enumerate(tiny.lm(model).layers)
        if attention_of(module, family_of(model.config).decoder) is not None
    ]
    with torch.no_grad():
        logits: Tensor = model(**batch).logits
    for hook in hooks:
        hook.remove()
    return logits


def ranks(family: str, batch: dict[str, Tensor], b: int) -> list[int]:
    """The raster index of each visual token of a row: its images stand apart, or come one right after another."""
    rank, found = -1, []
    ids = batch["input_ids"][b].tolist()
    for token in ids:
        rank = rank + 1 if token == tiny.IMAGE_TOKEN[family] else -1
        found.append(rank)
    return found


ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 3], [6]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_logits_are_those_of_a_mask_by_hand(family: str, case: str, impl: str) -> None:
    method, rule = CASES[case]
    batch = tiny.inputs(family, ROWS)
    text = text_of(family, batch)
    model = tiny.model(family, impl)
    expected = by_hand(family, model, batch, rule)
    with torch.no_grad(), foveate.compress(model, method):
        close(model(**batch).logits[text], expected[text])
        close(model(**batch, use_cache=False).logits[text], expected[text])


@pytest.mark.parametrize("family", [family for family in tiny.STRUCTURES if family not in tiny.WHOLE])
def test_the_masks_of_every_structure_are_narrowed(family: str) -> None:
    """Sliding windows, images that are seen both ways, layers without attention: on top of the model's own masks."""
    method, rule = CASES["hollow"]
    batch = tiny.inputs(family, [[2, "image", 5]])
    text, model = text_of(family, batch), tiny.model(family)
    expected, stock = by_hand(family, model, batch, rule), by_hand(family, model, batch, lambda *_: True)
    assert not torch.allclose(expected[text], stock[text], atol=1e-3)
    with torch.no_grad(), foveate.compress(model, method):
        close(model(**batch).logits[text], expected[text])


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_it_has_every_property(family: str, check: Property) -> None:
    """Of text from which tokens are hidden; methods that hide tokens from each other have them in methods/test_contract.py."""
    check(family, Paths(blind=True))


def test_text_that_sees_no_image_says_what_it_says_of_any_image(family: str) -> None:
    """Hidden from the text in every layer, an image changes nothing; its tokens and the cache are all there."""
    model, batch = tiny.model(family), tiny.inputs(family, [[2, "image", 5]])
    other = dict(batch, **{name: batch[name].flip(0, -1) for name in batch if name.startswith("pixel_values")})
    text, found = text_of(family, batch), []
    with torch.no_grad(), foveate.compress(model, Blind()) as handle:
        for each in (batch, other):
            out = generate(model, each, **LOGITS)
            found.append((model(**each).logits[text], *out.logits))
            lengths = {entry.keys.shape[2] for entry in tiny.entries(out.past_key_values) if not entry.is_sliding}
            assert lengths == {batch["input_ids"].shape[1] + 3}
        said = str(handle.report())
    assert "text sees text" in said
    assert ("layers that carry a state" in said) == (family in tiny.RECURRENT)
    if family in tiny.RECURRENT:  # a state takes in all that comes
        assert not torch.allclose(found[0][0], found[1][0], atol=1e-2)
        return
    for a, b in zip(*found, strict=True):
        close(a, b)


@dataclass(frozen=True)
class Blind(Method):
    """No text sees an image."""

    def sites(self, host: Host) -> list[Site]:
        return [Site("lm_entry", action="sight")]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        return Sight(torch.zeros_like(tokens.index), torch.tensor([[True, True], [False, True]]))


# -- the cache ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_a_cropped_and_copied_cache_knows_what_is_hidden(family: str, case: str) -> None:
    """What is cut off and comes again, on the cache or on a copy of it, sees what it saw in one prompt."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[:2])
    tail = dict(input_ids=batch["input_ids"][:, -2:], attention_mask=batch["attention_mask"])
    if family in tiny.PACKED:
        tail["position_ids"] = tiny.positions(model, batch)[..., -2:]
    with torch.no_grad(), foveate.compress(model, CASES[case][0]):
        out = model(**batch)
        cache = out.past_key_values
        cache.crop(-2)
        file = io.BytesIO()
        torch.save(cache, file)
        file.seek(0)
        swapped = copy.deepcopy(cache)
        swapped.reorder_cache(torch.tensor([1, 0]))
        for each in (copy.deepcopy(cache), torch.load(file, weights_only=False), cache):
            close(model(**tail, past_key_values=each).logits, out.logits[:, -2:])
        other = {name: value.flip(1 if name == "position_ids" else 0) for name, value in tail.items()}
        close(model(**other, past_key_values=swapped).logits, out.logits[:, -2:].flip(0))
        cache.crop(-(batch["input_ids"].shape[1] - 4))  # into the images
        assert cache.get_seq_length() == 4
        close(model(**batch).logits, out.logits)


def test_samples_of_one_row_are_what_they_are_alone(impl: str) -> None:
    model, alone = tiny.model("llava", impl), [tiny.inputs("llava", [row], seed=i) for i, row in enumerate(ROWS[:2])]
    row = {"pixel_values": torch.cat([batch["pixel_values"] for batch in alone])}
    row["input_ids"] = torch.cat([batch["input_ids"] for batch in alone], 1)
    lengths = [batch["input_ids"].shape[1] for batch in alone]
    row["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
    for method, _ in CASES.values():
        with torch.no_grad(), foveate.compress(model, method):
            together = model(**row, use_cache=False).logits[0].split(lengths)
            for ours, batch in zip(together, alone, strict=True):
                text = text_of("llava", batch)[0]
                close(ours[text], model(**batch).logits[0][text])


# -- what is refused ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Says(Method):
    """Whatever is asked for."""

    what: Any = None
    at: Any = "decoder"

    def sites(self, host: Host) -> list[Site]:
        return [Site(self.at, 1 if self.at == "decoder" else 0, action="sight")]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        given: dict[str, Any] = dict(
            group=torch.zeros_like(tokens.index), sees=torch.ones(2, 2, dtype=torch.bool), window=None
        )
        return Sight(**given | self.what) if isinstance(self.what, dict) else self.what  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (None, "returned NoneType, expected a Sight"),
        (dict(group=torch.zeros(3, dtype=torch.long)), r"group is int64 \(3,\), expected int64 \(\d+,\)"),
        (dict(group=[0]), "group is list, expected int64"),
        (dict(sees=torch.ones(2, 3, dtype=torch.bool)), r"sees is bool \(2, 3\), expected bool \(G \+ 1, G \+ 1\)"),
        (dict(sees=torch.ones(2, 2)), r"sees is float32 \(2, 2\), expected bool"),
        (dict(sees=torch.ones(1, 1, dtype=torch.bool)), r"group has 0, 0, 0 ..., expected 0 to -1"),
        (dict(sees=torch.zeros(2, 2, dtype=torch.bool)), "text does not see text"),
        (dict(window=-1), "window=-1, expected None or a whole number"),
    ],
)
def test_a_sight_of_the_wrong_size_is_a_sentence(what: Any, sentence: str) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with (
        foveate.compress(model, Says(what)),
        pytest.raises(ConfigError, match=rf"Says.answer at decoder 1.*{sentence}"),
    ):
        model(**batch)


def test_what_cannot_be_is_refused_with_a_sentence() -> None:
    model = tiny.model("llava")
    both = HOLLOW + Paths()
    refused(model, both, UnsupportedSiteError, "only one method of a sum can say who sees whom")
    refused(
        model,
        At(places=(Site("tower_output", action="sight"),)),
        UnsupportedSiteError,
        "'sight' cannot happen at tower_output",
    )


def test_layers_that_attend_to_keys_of_others_see_what_these_see(impl: str) -> None:
    """Layers 4 and 5 lend their keys to the last two: who sees whom is said before that."""
    model = tiny.build(tiny.config("gemma4", shared=2), impl)
    method, rule = CASES["hollow"]
    batch = tiny.inputs("gemma4", [[2, "image", 5]])
    late = At(places=(Site("decoder", 5, action="sight"),))
    refused(
        model, late, UnsupportedSiteError, "says at decoder 5 .* attend to the keys of layer 4: say it there or earlier"
    )
    text, expected = text_of("gemma4", batch), by_hand("gemma4", model, batch, rule)
    everywhere = by_hand("gemma4", model, batch, lambda _, *pair: rule(1, *pair))
    with torch.no_grad(), foveate.compress(model, method):
        close(model(**batch).logits[text], expected[text])
    with torch.no_grad(), foveate.compress(model, Says(dict(window=WINDOW), "lm_entry")):
        close(model(**batch).logits[text], everywhere[text])


def test_an_engine_cannot() -> None:
    model = tiny.model("llava")
    family = family_of(model.config)
    with pytest.raises(UnsupportedSiteError, match=r"says at lm_entry \(sight\) who may attend to whom"):
        make_plan(Blind(), host_of(model, family), family, model.config)


# -- beside other answers -----------------------------------------------------------------------------------------------

SUMS: dict[str, Method] = {
    "skip": HOLLOW + Skips(part="attention"),
    "decode": Paths(2, blind=True) + foveate.DyCoke(ratio=1.0, decode_ratio=0.5),
    "signals": HOLLOW + foveate.FastV(ratio=0.5),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("check", CORE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_a_sum_keeps_what_is_at_the_core(family: str, name: str, check: Property) -> None:
    check(family, SUMS[name])
